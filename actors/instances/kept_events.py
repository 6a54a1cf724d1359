"""Kept events: events that were sent to an instance and that no wait has consumed yet.

The payload of a kept event lies in the log. In memory are its number, its size and its time, and of
the newest few the payload too, so that an event that is consumed soon after it was sent is not read
again. Every count is a fold of the log.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from dynamic_workflows.eventlog.errors import LimitExceededError

if TYPE_CHECKING:
    from .decisions import CoreConfig, Key

HELD_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of payloads that a tenant holds in memory though they lie in its log, overhead included."""
HELD_EVENT_BYTES_MAX = 64 * 1024
"""Bytes above which a payload is held only while it is handed over."""
_HELD_OVERHEAD = 256
_READ_AHEAD_EVENTS = 64
_READ_AHEAD_BYTES = 256 * 1024
RETRY_AFTER_S = 1.0
"""What a refused sender is told to wait, in seconds: the receiver has to take events meanwhile."""


class KeptEvent(NamedTuple):
    """One event that no wait has consumed."""

    seq: int
    size: int
    """Bytes of its payload."""
    received_us: int


class Kept(NamedTuple):
    """The number of kept events, and the bytes of their payloads."""

    number: int = 0
    bytes: int = 0

    def plus(self, size: int) -> Kept:
        """Return the sum with one event more."""
        return Kept(self.number + 1, self.bytes + size)

    def minus(self, size: int) -> Kept:
        """Return the sum with one event less."""
        if self.number <= 1:
            return NOTHING_KEPT
        return Kept(self.number - 1, max(self.bytes - size, 0))


NOTHING_KEPT = Kept()


class KeptEvents:
    """The kept events of a tenant: their number, their limits, and the payloads in memory."""

    def __init__(self, tenant_id: str, config: CoreConfig) -> None:
        self._tenant_id = tenant_id
        self._config = config
        self.total = NOTHING_KEPT
        """Of all instances of the tenant."""
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._held_bytes = 0
        self._reading: set[int] = set()

    # --- number and limits

    def moved(self, before: Kept, now: Kept) -> None:
        """Update the totals: one instance keeps `now` instead of `before`."""
        total = self.total
        self.total = Kept(
            total.number - before.number + now.number, total.bytes - before.bytes + now.bytes
        )

    def check(self, key: Key, kept: Kept, size: int) -> None:
        """Raise LimitExceededError where the instance, or the tenant, may not keep one more event
        of `size` bytes."""
        config = self._config
        whose = f"instance {key[1]!r}"
        self._check_one(whose, kept.number + 1, config.events_kept_max, "events_kept_max")
        self._check_one(
            whose, kept.bytes + size, config.events_kept_bytes_max, "events_kept_bytes_max"
        )
        whose, total = f"tenant {self._tenant_id!r}", self.total
        self._check_one(
            whose, total.number + 1, config.events_kept_tenant_max, "events_kept_tenant_max"
        )
        self._check_one(
            whose,
            total.bytes + size,
            config.events_kept_tenant_bytes_max,
            "events_kept_tenant_bytes_max",
        )

    @staticmethod
    def _check_one(whose: str, would: int, most: int, limit: str) -> None:
        if would <= most:
            return
        what = "bytes of events" if "bytes" in limit else "events"
        raise LimitExceededError(
            f"{whose} may keep {most:,} {what} that no wait has taken ({limit}), and with this one "
            f"it would keep {would:,}: send it again when some were taken",
            retry_after=RETRY_AFTER_S,
            limit=limit,
        )

    # --- payloads in memory

    def hold(self, seq: int, payload: bytes) -> None:
        """Cache a payload, at least until `trim`."""
        self._held[seq] = payload
        self._held_bytes += len(payload) + _HELD_OVERHEAD

    def hold_if_small(self, seq: int, payload: bytes | None) -> None:
        """Cache a payload that was read with the log, if it is a small one."""
        if payload is not None and len(payload) <= HELD_EVENT_BYTES_MAX and seq not in self._held:
            self.hold(seq, payload)
            self.trim()

    def take(self, seq: int) -> bytes | None:
        """Return the payload and drop it from the cache; None where the log has to be read."""
        payload = self._held.pop(seq, None)
        if payload is not None:
            self._held_bytes -= len(payload) + _HELD_OVERHEAD
        return payload

    def holds(self, seq: int) -> bool:
        """Return whether the payload is in memory."""
        return seq in self._held

    def trim(self, seqs: tuple[int, ...] = ()) -> None:
        """Drop cached payloads above the limit: those of `seqs` that are large, then the oldest."""
        for seq in seqs:
            if len(self._held.get(seq, b"")) > HELD_EVENT_BYTES_MAX:
                self.take(seq)
        while self._held_bytes > HELD_BYTES_MAX:
            self.take(next(iter(self._held)))

    @property
    def held_bytes(self) -> int:
        """Bytes of payloads in memory, overhead included."""
        return self._held_bytes

    # --- reading

    def to_read(self, kept: deque[KeptEvent]) -> tuple[KeptEvent, ...]:
        """The events to read when the first of `kept` is wanted, some of the next ones among them;
        none where it is being read."""
        if kept[0].seq in self._reading:
            return ()
        wanted: list[KeptEvent] = []
        size = 0
        for event in islice(kept, _READ_AHEAD_EVENTS):
            size += event.size
            if wanted and size > _READ_AHEAD_BYTES:
                break
            if event.seq not in self._reading and event.seq not in self._held:
                wanted.append(event)
        self._reading.update(event.seq for event in wanted)
        return tuple(wanted)

    def have_read(self, seqs: tuple[int, ...], payloads: dict[int, bytes]) -> None:
        """Cache the payloads that a read of these events found."""
        self._reading.difference_update(seqs)
        for seq, payload in payloads.items():
            if seq not in self._held:
                self.hold(seq, payload)
