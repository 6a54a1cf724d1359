"""Event delivery: an event goes to the wait of its type, or is kept until one begins."""

from __future__ import annotations

from msgspec import Raw

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.loaders.protocol.contract import ENDED

from ..instances.decisions import Decision, Key
from ..instances.identifiers import check_event_type
from ..instances.index_entry import WOKEN, IndexEntry
from ..instances.instance import Instance, first_wait
from ..instances.row_payloads import EventReceived, size_to_tell
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
        entry, instance = self._state.loaded(key)
        if is_repeated(entry, token):
            return Decision(durable=True)
        if entry.status in ENDED:
            raise InstanceError(
                f"instance {key[1]!r} is {entry.status} and takes no events: "
                "restart it first, or send the event to another",
                code="instance.finished",
            )
        if not self._would_be_taken(entry, event_type, len(payload), now_us):
            self._state.kept.check(key, entry.kept, values.size(payload))
        d = Decision(durable=True)
        if entry.may_wake and entry.lifetime is None:
            # A wait whose time is up must not take this event.
            self._starts.catch_up(d, entry, now_us)
            if d.rows:
                self._state.enqueue(entry, WOKEN)
        size = size_to_tell(payload)
        body = EventReceived(event_type, Raw(payload), size=size, token=token)
        row = self._state.emit(d, entry, "event_received", body, now_us=now_us)
        self._state.kept.hold(row.seq, payload)
        if entry.may_wake and not entry.rolling_back:
            wait = first_wait(instance, event_type)
            # A replay that has not asked for its wait again takes the event when it does.
            if wait is not None and (entry.lifetime is None or wait.token is not None):
                self._hand_over(d, entry, wait, now_us)
        self._state.kept.trim((row.seq,))
        return d

    def _would_be_taken(self, entry: IndexEntry, event_type: str, size: int, now_us: int) -> bool:
        """Whether a wait takes an event of this type in the moment in which it comes."""
        instance = entry.instance
        assert instance is not None
        if not entry.may_wake or entry.rolling_back or event_type in instance.events:
            return False
        if entry.weight + size > self._config.state_bytes_max:
            return False
        return any(
            step.event_type == event_type
            and (entry.lifetime is not None or (step.until_us or 0) > now_us)
            for step in instance.open.values()
        )

    def events_read(
        self, key: Key, seqs: tuple[int, ...], payloads: dict[int, bytes], *, now_us: int
    ) -> Decision:
        """Kept events (`ReadEvents`) were read: give them to the waits that are open for them."""
        d = Decision()
        self._state.kept.have_read(seqs, payloads)
        entry = self._state.index.get(key)
        if entry is not None and entry.may_wake and not entry.rolling_back:
            if entry.instance is not None:
                self._hand_over_read(d, entry, entry.instance, now_us)
            else:  # It has been put away: it asks again when it starts.
                self._state.enqueue(entry, WOKEN)
        self._state.kept.trim(seqs)
        return d

    def _hand_over_read(
        self, d: Decision, entry: IndexEntry, instance: Instance, now_us: int
    ) -> None:
        for step in list(instance.open.values()):
            kept = instance.events.get(step.event_type or "")
            if not kept or (entry.lifetime is not None and step.token is None):
                continue
            if self._state.kept.holds(kept[0].seq):
                self._hand_over(d, entry, step, now_us)
            else:
                self._waits.read_events(d, entry, kept)

    def _hand_over(self, d: Decision, entry: IndexEntry, wait: StepState, now_us: int) -> None:
        if entry.lifetime is not None:
            self._lifetimes.take_slot(d, entry.lifetime, now_us, may_drop=True)
        self._waits.deliver(d, entry, wait, now_us)
        if entry.lifetime is None:
            self._state.enqueue(entry, WOKEN)

    def mock_event(self, key: Key, event_type: str, payload: bytes, *, now_us: int) -> Decision:
        """Testing: give a live wait of this type this payload, or keep it for the next one."""
        d = Decision(durable=True)
        self._mocks.of_instance(key).mock_event(event_type, payload)
        entry = self._state.index.get(key)
        if entry is None or entry.instance is None or not entry.may_wake:
            return d
        wait = first_wait(entry.instance, event_type)
        if wait is not None and wait.token is not None:
            self._hand_over(d, entry, wait, now_us)
        return d
