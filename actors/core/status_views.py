"""Status views: what can be asked of a tenant's instances; nothing here changes anything."""

from __future__ import annotations

from typing import Any

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.loaders.protocol.calls import StatusData
from dynamic_workflows.loaders.protocol.contract import ENDED, QUEUED, WAITING

from ..instances.decisions import Key
from ..instances.identifiers import check_statuses
from ..instances.index_entry import WOKEN, IndexEntry
from ..instances.instance import Instance
from .explanation import LOADS_AGAIN, explain
from .lifetimes import Lifetimes
from .state import CoreState


class StatusViews:
    """Answers questions about the status of instances."""

    def __init__(self, state: CoreState, lifetimes: Lifetimes) -> None:
        self._state = state
        self._lifetimes = lifetimes

    def exists(self, key: Key) -> bool:
        """Whether there is such an instance."""
        return key in self._state.index

    def has_ended(self, key: Key) -> bool:
        """Whether its run has ended."""
        return self._state.find(key).is_ended

    def created_seq(self, key: Key) -> int:
        """The number of the row that created the instance."""
        return self._state.find(key).created_seq

    def status(self, key: Key) -> StatusData | None:
        """The status as data, or None where the instance has to be loaded for it."""
        entry = self._state.find(key)
        instance = entry.instance
        if instance is None and entry.is_ended:
            return None
        data = StatusData(status=self.shown_status(entry))
        reason = self._state.load_failures.get(key) or entry.get("reason")
        if reason is not None:
            data.reason_code, data.reason_message = reason
        if instance is not None and entry.is_ended:
            _add_outcome(data, instance)
        return data

    def shown_status(self, entry: IndexEntry) -> str:
        """A woken instance without a slot counts as queued."""
        is_held_up = entry.status == WAITING and entry.queue == WOKEN
        if is_held_up and self._lifetimes.free_slots() <= 0:
            return QUEUED
        return entry.status

    def page(
        self, workflow: str | None, status: Any, limit: int, cursor: str | None
    ) -> dict[str, Any]:
        """A page of entries, newest first: {"items", "cursor"}."""
        wanted = check_statuses(status)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 10_000:
            raise InvalidError(f"limit is a number from 1 to 10,000, not {limit!r}")
        if cursor is not None and not (isinstance(cursor, str) and cursor.isdecimal()):
            raise InvalidError("this cursor was not given out by list()")
        items: list[dict[str, Any]] = []
        last_seq = 0
        for entry in self._state.index.newest_before(None if cursor is None else int(cursor)):
            shown = self.shown_status(entry)
            if workflow not in (None, entry.key[0]) or (wanted and shown not in wanted):
                continue
            if len(items) == limit:
                return {"items": items, "cursor": str(last_seq)}
            items.append(_item(entry, shown))
            last_seq = entry.created_seq
        return {"items": items, "cursor": None}

    def why(self, key: Key, now_us: int = 0) -> tuple[str, str]:
        """(code, sentence): what the instance waits for, or has waited for until now."""
        entry = self._state.find(key)
        failure = self._state.load_failures.get(key)
        if failure is not None:
            return failure[0], f"{failure[1]}; {LOADS_AGAIN}"
        return explain(entry, self.shown_status(entry), now_us)

    def counts(self) -> dict[str, int]:
        """How many instances have each status."""
        return dict(self._state.index.counts)

    def open_count(self) -> int:
        """Instances whose run has not ended."""
        return len(self._state.index) - sum(self._state.index.counts[status] for status in ENDED)


def _add_outcome(data: StatusData, instance: Instance) -> None:
    data.output = instance.output
    data.error = instance.outcome_error
    data.rollback_outcome = instance.rollback_outcome
    data.rollback_error = instance.rollback_error


def _item(entry: IndexEntry, shown: str) -> dict[str, Any]:
    return {
        "id": entry.key[1],
        "workflow": entry.key[0],
        "status": shown,
        "created_us": entry.created_us,
        "ended_us": entry.ended_us or None,
    }
