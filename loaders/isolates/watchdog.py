"""Watchdog: decides from samples of an isolate whether it has exceeded a limit.

It trusts CPU clocks and resident memory, which the kernel keeps, before the heartbeat page, which
the guest could forge. It has no clock of its own: each sample carries its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from .interface import Exit, Limits


@dataclass(frozen=True)
class UsageSample:
    """What one isolate has used, at one moment."""

    now_s: float
    """Of a clock that only goes forward."""
    cpu_s: float
    """Used by the process since it began."""
    turn: int
    is_busy: bool
    life: int
    frames: int
    """Received from it since it began."""
    resident_bytes: int | None = None
    """None: not looked up this time."""


class Watchdog:
    """Checks the samples of one isolate against its limits."""

    def __init__(self, limits: Limits, *, shared_bytes: int) -> None:
        self._limits = limits
        self._shared_bytes = shared_bytes
        self._turn: UsageSample | None = None
        self._spoke: UsageSample | None = None

    def check(self, sample: UsageSample) -> Exit | None:
        """Return how the isolate has to end, or None if no limit is exceeded."""
        return self._check_turn(sample) or self._check_silence(sample) or self._check_memory(sample)

    def _check_turn(self, sample: UsageSample) -> Exit | None:
        if not sample.is_busy:
            self._turn = None
            return None
        # The turn may have begun before it was first seen: what is measured is never too much.
        if self._turn is None or self._turn.turn != sample.turn:
            self._turn = sample
            return None
        cpu_ms = (sample.cpu_s - self._turn.cpu_s) * 1000
        wall_ms = (sample.now_s - self._turn.now_s) * 1000
        if cpu_ms > self._limits.turn_cpu_ms:
            return _exceeded("cpu", f"cpu limit of {seconds(self._limits.turn_cpu_ms)}", sample)
        if wall_ms > self._limits.turn_wall_ms:
            limit = f"limit of {seconds(self._limits.turn_wall_ms)} for one turn"
            return _exceeded("wall", limit, sample)
        return None

    def _check_silence(self, sample: UsageSample) -> Exit | None:
        if self._spoke is None or self._spoke.frames != sample.frames:
            self._spoke = sample
            return None
        if (sample.cpu_s - self._spoke.cpu_s) * 1000 > self._limits.silent_cpu_ms:
            limit = f"cpu limit of {seconds(self._limits.silent_cpu_ms)} without a message"
            return _exceeded("silent", limit, sample)
        return None

    def _check_memory(self, sample: UsageSample) -> Exit | None:
        if sample.resident_bytes is None:
            return None
        if sample.resident_bytes - self._shared_bytes > self._limits.memory_mb << 20:
            limit = f"memory limit of {self._limits.memory_mb} MB"
            return _exceeded("memory", limit, sample)
        return None


def seconds(ms: int) -> str:
    """Return seconds as an error shows them: `0.5 s`, `5 s`."""
    return f"{ms / 1000:g} s"


def _exceeded(kind: str, limit: str, sample: UsageSample) -> Exit:
    return Exit(f"{limit} exceeded", is_tenants_own=True, life=sample.life, kind=kind)
