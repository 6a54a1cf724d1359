"""PendingEnds: what guests were told to end and have not confirmed, and what does not end in time.

A guest confirms as soon as nothing is left, and reports by itself what goes on although it was
cancelled. One that does neither has been tampered with, or has no event loop any more: after some
time of grace its isolate is ended all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from dynamic_workflows.loaders.guest.sanitize import plain

if TYPE_CHECKING:
    from dynamic_workflows.loaders.protocol.messages import CancellationIgnored

TrackedEnd: TypeAlias = tuple[int, int, int]
"""(lifetime or call, token of a step or WHOLE, attempt)"""

WHOLE = 0
"""In the place of a token: all of the lifetime. A guest's tokens are above it, ours below."""

KIND = "stubborn"
"""Of an exit, when code that was told to end went on."""

_TICK_S = 1.0
_TICK_COUNTS_S = 2.0
"""Of the time between two ticks no more counts: the rest is our own delay."""
_PLACE_CHARACTERS_MAX = 300


class PendingEnds:
    """What was told to end in one isolate, and has not confirmed it."""

    def __init__(self, watch: EndDeadline) -> None:
        self._watch = watch
        self._since_s: dict[TrackedEnd, float] = {}
        self._names: dict[int, tuple[str, str] | str] = {}
        """The instance that a lifetime was of, or the method that a call was of."""
        self._attempts: dict[int, list[TrackedEnd]] = {}
        """Attempts by lifetime: they leave with it."""

    def __len__(self) -> int:
        return len(self._since_s)

    def __contains__(self, life: int) -> bool:
        return life in self._names

    def clear(self) -> None:
        """The isolate is gone, and all of them with it."""
        self._since_s.clear()
        self._names.clear()
        self._attempts.clear()

    def key(self, life: int) -> tuple[str, str] | None:
        """The instance that a lifetime was of, while it leaves."""
        name = self._names.get(life)
        return name if isinstance(name, tuple) else None

    def add(self, life: int, name: tuple[str, str] | str) -> None:
        """A lifetime (with its instance) or a call (with its method) was told to end."""
        for one in self._attempts.pop(life, ()):
            self._since_s.pop(one, None)
        self._names[life] = name
        self._since_s[life, WHOLE, 0] = self._watch.begin()

    def add_attempt(self, life: int, token: int, attempt: int) -> None:
        """An attempt of a lifetime that lives on was told to end."""
        one = (life, token, attempt)
        self._since_s[one] = self._watch.begin()
        self._attempts.setdefault(life, []).append(one)

    def confirm(self, life: int, token: int = WHOLE, attempt: int = 0) -> bool:
        """Nothing of it is left; False when it was not told to end."""
        if (token, attempt) == (WHOLE, 0):
            self._names.pop(life, None)
        elif life in self._attempts:
            self._forget_attempt((life, token, attempt))
        return self._since_s.pop((life, token, attempt), None) is not None

    def _forget_attempt(self, one: TrackedEnd) -> None:
        attempts = self._attempts[one[0]]
        if one in attempts:
            attempts.remove(one)
        if not attempts:
            del self._attempts[one[0]]

    def reason(self, life: int, report: CancellationIgnored) -> str | None:
        """Why the isolate has to go when a guest reports this; None: it was not told to end."""
        token = WHOLE if report.token is None else report.token
        if (life, token, report.attempt) not in self._since_s:
            return None
        place = "" if report.at is None else f" (at {plain(report.at, _PLACE_CHARACTERS_MAX)})"
        return self._reason(life, token, report.attempt, self._watch.grace_s) + place

    def overdue(self, now_s: float) -> tuple[int, str] | None:
        """A lifetime of which nothing was heard for too long, and the reason."""
        limit_s = self._watch.limit_s
        for (life, token, attempt), since_s in self._since_s.items():
            if now_s - since_s > limit_s:
                return life, self._reason(life, token, attempt, limit_s)
            break  # the others are younger
        return None

    def _reason(self, life: int, token: int, attempt: int, seconds: float) -> str:
        name = self._names.get(life)
        if token != WHOLE:
            what, end = f"attempt {attempt} of a step", "timed out"
        elif isinstance(name, str):
            what, end = f"the call of {name}", "was cancelled"
        else:
            what, end = f"instance {name[1] if name else ''!r}", "was dropped"
        return f"the code of {what} goes on {seconds:g} s after it {end}"


class EndingHost(Protocol):
    """A host of code, as the deadline of what has to end in its isolate sees it."""

    pending_ends: PendingEnds

    def kill(self, reason: str, *, kind: str, is_tenants_own: bool, life: int = 0) -> None:
        """End the isolate; `life` did it, where that is known."""
        ...


class EndDeadline:
    """Ends isolates of a tenant in which something goes on too long after it was told to end."""

    def __init__(
        self,
        grace_s: float,
        *,
        slack_s: float,
        hosts: Callable[[], Iterable[EndingHost]],
    ) -> None:
        """`grace_s` is what guests give; one that says nothing gets it twice, and `slack_s`."""
        self.grace_s = grace_s
        self.limit_s = 2 * grace_s + slack_s
        self._hosts = hosts
        self._timer: asyncio.TimerHandle | None = None
        self._now_s = 0.0
        """A clock that stands still while nobody leaves, and while we were held up ourselves."""
        self._ticked_s = 0.0

    def begin(self) -> float:
        """Somebody leaves: the time on the watch's own clock."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._ticked_s = loop.time()
            self._timer = loop.call_later(_TICK_S, self._tick)
        return self._now_s

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._now_s += min(now_s - self._ticked_s, _TICK_COUNTS_S)
        self._ticked_s = now_s
        self._timer = None
        is_wanted = False
        for host in list(self._hosts()):
            overdue = host.pending_ends.overdue(self._now_s)
            if overdue is not None:
                life, reason = overdue
                host.kill(reason, kind=KIND, is_tenants_own=True, life=life)
            is_wanted = is_wanted or len(host.pending_ends) > 0
        if is_wanted:
            self._timer = loop.call_later(_TICK_S, self._tick)
