"""Creation: new instances are checked, admitted and queued."""

from __future__ import annotations

from msgspec import Raw

from dynamic_workflows.eventlog.errors import InstanceError, LimitExceededError
from dynamic_workflows.eventlog.token_bucket import TokenBucket
from dynamic_workflows.loaders.protocol.contract import QUEUED

from ..instances.decisions import CoreConfig, CreateItem, Decision, Key
from ..instances.identifiers import check_batch, check_new_id, check_workflow_name
from ..instances.index_entry import IndexEntry
from ..instances.row_payloads import Queued, raw
from .state import CoreState


class Creation:
    """Creates instances, as many and as fast as the tenant may have them."""

    def __init__(self, state: CoreState) -> None:
        self._state = state
        self._config = state.config
        self._mocks = state.mocks
        self._bucket = _bucket(state.config)

    def create(self, items: list[CreateItem], *, strict: bool, now_us: int) -> Decision:
        """Create instances, all or none. The answer is the list of ids that were created, in order;
        an id that exists is left out, or raises `instance.already_exists` if `strict`. The same
        create again (same id, same token) is answered as the first time."""
        fresh, answer = self._new_items(items, strict)
        d = Decision(durable=True, answer=answer)
        if fresh:
            self._check_instances(len(fresh))
            self.admit(len(fresh), now_us)
            for item in fresh:
                self.create_one(d, item, now_us)
        return d

    def _new_items(
        self, items: list[CreateItem], strict: bool
    ) -> tuple[list[CreateItem], list[str]]:
        check_batch(items)
        fresh: list[CreateItem] = []
        answer: list[str] = []
        seen: set[Key] = set()
        for item in items:
            check_workflow_name(item.workflow)
            check_new_id(item.instance_id)
            key = (item.workflow, item.instance_id)
            known = self._state.index.get(key)
            is_again = known is not None and item.token is not None and known.token == item.token
            if key in seen or (known is not None and not is_again):
                if strict:
                    raise _already_exists(key)
                continue
            seen.add(key)
            answer.append(item.instance_id)
            if known is None:
                fresh.append(item)
        return fresh, answer

    def _check_instances(self, n: int) -> None:
        most = self._config.instances_max
        known = len(self._state.index)
        if known + n > most:
            raise LimitExceededError(
                f"tenant {self._state.tenant_id!r} has {known:,} instances, ended ones "
                f"among them, and may have {most:,} (instances_max): delete what is over, or let "
                "`retention` be shorter",
                retry_after=60.0,
                limit="instances_max",
            )

    def admit(self, n: int, now_us: int) -> None:
        """Take n creates from the tenant's rate. Raises LimitExceededError where the rate or the
        queue has no room for them."""
        queued = self._state.index.counts[QUEUED]
        if queued + n > self._config.queued_max:
            raise LimitExceededError(
                f"tenant {self._state.tenant_id!r} has {queued} queued instances and may have "
                f"{self._config.queued_max}: wait until some have started",
                retry_after=1.0,
            )
        if not self._bucket.take(n, now_us):
            wait_s = self._bucket.wait_s()
            raise LimitExceededError(
                f"tenant {self._state.tenant_id!r} may create "
                f"{self._config.creates_per_second_max:g} instances a second: "
                f"try again in {wait_s:.3f} s",
                retry_after=wait_s,
            )

    def create_one(self, d: Decision, item: CreateItem, now_us: int) -> IndexEntry:
        """Write the first row of an instance that is checked and admitted, and queue it."""
        entry = IndexEntry((item.workflow, item.instance_id))
        body = Queued(
            Raw(item.params),
            item.trigger,
            item.pin,
            item.retention,
            raw(item.schedule),
            item.token,
            item.workflow_name,
        )
        self._state.emit(
            d,
            entry,
            "workflow_queued",
            body,
            now_us=now_us,
            code_hash=item.code_hash,
            metadata=item.metadata,
        )
        if self._mocks.were_set:
            self._mocks.created(entry.key)
        self._state.rest(entry, now_us)
        return entry


def _bucket(config: CoreConfig) -> TokenBucket:
    """Return the budget of creates: one second's worth at once, unless the settings say more.

    A batch is taken whole where a single create would be, at any rate; the debt that it leaves is
    at most a second's worth.
    """
    rate, burst = config.creates_per_second_max, config.creates_burst_max
    return TokenBucket(
        rate, burst=max(rate if burst is None else burst, 1.0), debt_max=max(rate, 1.0)
    )


def _already_exists(key: Key) -> InstanceError:
    return InstanceError(
        f"workflow {key[0]!r} has an instance {key[1]!r} already: get it, delete it, or choose "
        "another id",
        code="instance.already_exists",
    )
