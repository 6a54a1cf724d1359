"""Event delivery: an event goes to the wait of its type, or is kept until one begins."""

from __future__ import annotations

from msgspec import Raw

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InstanceError

from ..instances.decisions import Decision, Key
from ..instances.identifiers import check_event_type
from ..instances.index_entry import WOKEN, IndexEntry
from ..instances.instance import Instance, first_wait
from ..instances.row_payloads import EventReceived, size_to_tell
from ..instances.state_machine import ENDED
from ..instances.step_state import StepState
from .lifetimes import Lifetimes
from .starts import LifetimeStarts
from .state import CoreState, is_repeated
from .waits import Waits


class EventDelivery:
    """Receives events and hands them to waits."""

    def __init__(
        self, state: CoreState, lifetimes: Lifetimes, waits: Waits, starts: LifetimeStarts
    ) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._waits = waits
        self._starts = starts
        self._config = state.config
        self._mocks = state.mocks

    def send_event(
        self,
        key: Key,
        event_type: str,
        payload: bytes,
        *,
        token: str | None = None,
        now_us: int,
    ) -> Decision:
        """Deliver an event to the wait of its type that began first, or keep it for the next
        one."""
        check_event_type(event_type)
        summary, instance = self._state.loaded(key)
        if is_repeated(summary, token):
            return Decision(durable=True)
        if summary.status in ENDED:
            raise InstanceError(
                f"instance {key[1]!r} is {summary.status} and takes no events: "
                "restart it first, or send the event to another",
                code="instance.finished",
            )
        if not self._would_be_taken(summary, event_type, len(payload), now_us):
            self._state.kept.check(key, summary.kept, values.size(payload))
        d = Decision(durable=True)
        if summary.may_wake and summary.lifetime is None:
            # A wait whose time is up must not take this event.
            self._starts.catch_up(d, summary, now_us)
            if d.rows:
                self._state.enqueue(summary, WOKEN)
        size = size_to_tell(payload)
        body = EventReceived(event_type, Raw(payload), size=size, token=token)
        row = self._state.emit(d, summary, "event_received", body, now_us=now_us)
        self._state.kept.hold(row.seq, payload)
        if summary.may_wake and not summary.rolling_back:
            wait = first_wait(instance, event_type)
            # A replay that has not asked for its wait again takes the event when it does.
            if wait is not None and (summary.lifetime is None or wait.token is not None):
                self._hand_over(d, summary, wait, now_us)
        self._state.kept.trim((row.seq,))
        return d

    def _would_be_taken(self, summary: IndexEntry, event_type: str, size: int, now_us: int) -> bool:
        """Whether a wait takes an event of this type in the moment in which it comes."""
        instance = summary.instance
        assert instance is not None
        if not summary.may_wake or summary.rolling_back or event_type in instance.events:
            return False
        if summary.weight + size > self._config.state_bytes_max:
            return False
        return any(
            step.event_type == event_type
            and (summary.lifetime is not None or (step.until_us or 0) > now_us)
            for step in instance.open.values()
        )

    def events_read(
        self, key: Key, seqs: tuple[int, ...], payloads: dict[int, bytes], *, now_us: int
    ) -> Decision:
        """Kept events (`ReadEvents`) were read: give them to the waits that are open for them."""
        d = Decision()
        self._state.kept.have_read(seqs, payloads)
        summary = self._state.directory.get(key)
        if summary is not None and summary.may_wake and not summary.rolling_back:
            if summary.instance is not None:
                self._hand_over_read(d, summary, summary.instance, now_us)
            else:  # It has been put away: it asks again when it starts.
                self._state.enqueue(summary, WOKEN)
        self._state.kept.trim(seqs)
        return d

    def _hand_over_read(
        self, d: Decision, summary: IndexEntry, instance: Instance, now_us: int
    ) -> None:
        for step in list(instance.open.values()):
            kept = instance.events.get(step.event_type or "")
            if not kept or (summary.lifetime is not None and step.token is None):
                continue
            if self._state.kept.holds(kept[0].seq):
                self._hand_over(d, summary, step, now_us)
            else:
                self._waits.read_events(d, summary, kept)

    def _hand_over(self, d: Decision, summary: IndexEntry, wait: StepState, now_us: int) -> None:
        if summary.lifetime is not None:
            self._lifetimes.take_slot(d, summary.lifetime, now_us, may_drop=True)
        self._waits.deliver(d, summary, wait, now_us)
        if summary.lifetime is None:
            self._state.enqueue(summary, WOKEN)

    def mock_event(self, key: Key, event_type: str, payload: bytes, *, now_us: int) -> Decision:
        """Testing: give a live wait of this type this payload, or keep it for the next one."""
        d = Decision(durable=True)
        self._mocks.of_instance(key).mock_event(event_type, payload)
        summary = self._state.directory.get(key)
        if summary is None or summary.instance is None or not summary.may_wake:
            return d
        wait = first_wait(summary.instance, event_type)
        if wait is not None and wait.token is not None:
            self._hand_over(d, summary, wait, now_us)
        return d
