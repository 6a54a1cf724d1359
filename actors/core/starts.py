"""Starts: which instances may begin a lifetime, with which code, and what begins it."""

from __future__ import annotations

from collections.abc import Iterator

from dynamic_workflows.loaders.protocol.contract import DO, QUEUED, WAITING
from dynamic_workflows.loaders.protocol.messages import RecordedStep, Run

from ..instances.decisions import Decision, Key
from ..instances.index_entry import NOT_QUEUED, IndexEntry, Lifetime
from ..instances.instance import Instance
from ..instances.row_payloads import own_error
from .attempts import Attempts
from .lifetimes import Lifetimes
from .state import CoreState
from .waits import Waits


class LifetimeStarts:
    """Begins lifetimes of queued instances, and tells the shell what it needs for that."""

    def __init__(
        self, state: CoreState, lifetimes: Lifetimes, attempts: Attempts, waits: Waits
    ) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._attempts = attempts
        self._waits = waits
        self._config = state.config

    def runnable(self) -> Iterator[Key]:
        """The instances that may start now, in order: woken before new, within the free slots; then
        those whose code could not be loaded. Nothing changes until `start`; the shell loads an
        instance before it starts it."""
        for entry in self._state.queues.first(self._lifetimes.free_slots()):
            yield entry.key

    def start(self, key: Key, *, now_us: int) -> Decision:
        """Begin a lifetime of a loaded instance that `runnable` named; the answer is its number, or
        None when there is nothing to start any more."""
        d = Decision()
        entry = self._state.index.get(key)
        if entry is None or not entry.queue or entry.lifetime is not None:
            return d
        assert entry.instance is not None, f"{key} has to be loaded before it starts"
        self._state.load_failures.pop(key, None)
        is_first = not entry.started_us
        self.catch_up(d, entry, now_us)
        if entry.status == QUEUED and not entry.started_us:
            kind = "workflow_started"
        elif entry.status in (QUEUED, WAITING):
            kind = "workflow_running"
        else:
            kind = ""
        if kind:
            self._state.emit(d, entry, kind, now_us=now_us, code_hash=self._news_of_code(entry))
        life = self._lifetimes.begin(entry, "rollback" if entry.rolling_back else "run")
        told = -1 if is_first and not entry.instance.steps else entry.instance.told
        self._lifetimes.send(d, life, self._run_message(entry, entry.instance, life, now_us, told))
        d.answer = life.number
        return d

    def code_hash(self, key: Key) -> str | None:
        """The content hash of the code that an instance runs."""
        return self._state.find(key).code_hash

    def pin(self, key: Key) -> str:
        """ "hash", or "latest": then the shell calls `repin` before each start."""
        return self._state.find(key).get("pin") or "hash"

    def repin(self, key: Key, code_hash: str) -> None:
        """Run this code from the next lifetime on; the row of its start says so."""
        self._state.find(key).code_hash = code_hash

    def run(self, key: Key) -> int:
        """The number of the present run of an instance, from 1."""
        return self._state.find(key).run

    def workflow_name(self, key: Key) -> str:
        """What `run` sees as `event.workflow_name`."""
        return self._state.find(key).get("workflow_name") or key[0]

    def metadata(self, key: Key) -> bytes | None:
        """The dispatcher's metadata of a loaded instance."""
        return self._state.loaded(key)[1].metadata

    def note_load_failure(self, key: Key, code: str, message: str) -> None:
        """The code of an instance that wants to run cannot be loaded: show it as the reason, and
        let others go first. The next `start` clears it."""
        entry = self._state.index.get(key)
        if entry is not None and entry.queue != NOT_QUEUED:
            self._state.load_failures[key] = (code, message)
            self._state.queues.note_failing(entry)

    def catch_up(self, d: Decision, entry: IndexEntry, now_us: int) -> None:
        """Record what came due, or was cut off, while the instance had no lifetime."""
        assert entry.lifetime is None
        instance = entry.instance
        assert instance is not None
        lost = own_error("WorkflowInternalError", "the attempt was cut off by a restart")
        self._attempts.lose_in_flight(d, entry, lost, now_us)
        if entry.rolling_back:
            return
        for step in list(instance.open.values()):
            if instance.has_event_for(step):
                self._waits.deliver(d, entry, step, now_us)
            elif step.until_us is not None and step.until_us <= now_us and step.kind != DO:
                self._waits.come_due(d, entry, step, now_us)

    def _news_of_code(self, entry: IndexEntry) -> str | None:
        """The code hash for the row of a start, if the instance follows the newest code: only then
        the log may not know it."""
        return entry.code_hash if entry.get("pin") == "latest" else None

    def _run_message(
        self, entry: IndexEntry, instance: Instance, life: Lifetime, now_us: int, told: int
    ) -> Run:
        workflow, instance_id = entry.key
        history: list[RecordedStep] = [step.known() for step in instance.steps.values()]
        return Run(
            workflow,
            instance_id,
            instance.params,
            entry.created_us,
            history,
            self._config.steps_max,
            instance.schedule,
            life.mode,
            None,
            entry.get("workflow_name"),
            now_us,
            self._config.waits_max,
            told,
        )
