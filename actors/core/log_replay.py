"""Log replay: rebuilds the state of a tenant's core from the rows of its log."""

from __future__ import annotations

from dynamic_workflows.eventlog.events import Row, span
from dynamic_workflows.loaders.protocol.contract import ENDED, PAUSING

from ..instances.decisions import Decision
from ..instances.fold import EVENT_KINDS
from ..instances.index_entry import IndexEntry
from ..instances.row_payloads import decode, own_error
from ..instances.state_machine import NONE
from .attempts import Attempts
from .run_ends import RunEnds
from .schedules import Schedules
from .state import CoreState

_SLEEPERS_LOADED_MAX = 20_000
"""Rests that a replay keeps in full; of later ones it keeps the wake time."""


class LogReplay:
    """Takes in the rows when a tenant is opened, and then gives everything open a wake source."""

    def __init__(
        self, state: CoreState, ends: RunEnds, attempts: Attempts, schedules: Schedules
    ) -> None:
        self._state = state
        self._ends = ends
        self._attempts = attempts
        self._schedules = schedules
        self._sleepers = 0

    def apply(self, row: Row) -> None:
        """Take in a row of the log, folded or unfolded. Rows come in the order of `seq`."""
        state = self._state
        assert row.seq > state.last_seq, "rows come in the order of the log"
        state.last_seq = row.seq + span(row) - 1
        body = decode(row)
        if not row.instance_id:
            self._schedules.take_in(row, body)
            return
        key = (row.workflow, row.instance_id)
        entry = state.index.get(key)
        if entry is None:
            if row.type != "workflow_queued":
                state.note_deletion(key, body)
                return  # A row of an instance that was deleted.
            entry = IndexEntry(key)
        state.take_in(entry, row, body, None)
        if row.type in EVENT_KINDS:
            state.note_event(row, body)
        if entry.status == NONE:
            state.forget(entry)
        elif entry.instance is None:
            entry.set("wake_us", None)  # It has moved on, unseen: `recover` will wake it.
        elif entry.status in ENDED:
            self._unload(entry)
        elif row.blob is not None and row.type != "event_received":
            entry.instance.is_partial = True
        elif row.type == "workflow_waiting":
            self._keep_sleeper(entry)

    def _keep_sleeper(self, entry: IndexEntry) -> None:
        """Keep the memory of an opening bounded: of many sleepers only the wake time stays."""
        self._sleepers += 1
        if self._sleepers > _SLEEPERS_LOADED_MAX:
            wake_us = self._state.wake_us(entry)
            self._unload(entry)
            entry.set("wake_us", wake_us)

    def _unload(self, entry: IndexEntry) -> None:
        """Unload an instance, but keep the tokens that rows which follow may repeat."""
        assert entry.instance is not None
        entry.set("tokens", entry.instance.tokens or None)
        self._state.unload(entry)

    def recover(self, now_us: int) -> Decision:
        """After the last row: record attempts that were in flight as cut off, delete what has
        outlived its retention, and give everything open its wake source."""
        d = Decision(durable=True)
        lost = own_error("WorkflowInternalError", "the attempt was cut off by a crash")
        for entry in self._state.index:
            if entry.instance is not None:
                self._attempts.lose_in_flight(d, entry, lost, now_us)
                if entry.instance.is_partial:
                    self._state.unload(entry)
            entry.set("tokens", None)  # Who loads it finds them in its history.
            if entry.status == PAUSING:
                self._state.emit(d, entry, "workflow_paused", now_us=now_us)
            self._state.rest(entry, now_us)
            if entry.is_ended and entry.timer is not None and entry.timer.due_us <= now_us:
                self._ends.delete(d, entry, now_us)  # Its id is free from the first call on.
        self._schedules.arm_all()
        return d
