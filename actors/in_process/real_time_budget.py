"""Real time budget: how long the platform's own code may run before virtual time moves on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

ALLOWANCE_S = 1.0
"""For a call: it may itself wait for an instance, and so for time to go on; who can tell."""
_LESS_AFTER = 4
_EXHAUSTED_MAX = 6


class RealTimeBudget:
    """A budget of real time for each call, once, however often time is moved.

    Calls of what has used up its allowance before have less, since a step that hangs is tried
    again; one that answers in time has all of it again.
    """

    def __init__(self) -> None:
        self._until_s: dict[Hashable, float] = {}
        self._late: set[Hashable] = set()
        self._kinds: dict[Hashable, Hashable] = {}
        self._exhausted: dict[Hashable, int] = {}

    def is_left(self, calls: Iterable[tuple[Hashable, Hashable]], now_s: float) -> bool:
        """Return whether one of these calls (call, what it calls) has budget left."""
        here = dict(calls)
        for call in self._until_s.keys() - here.keys():
            del self._until_s[call]
            kind = self._kinds.pop(call)
            if call not in self._late:
                self._exhausted.pop(kind, None)
            self._late.discard(call)
        is_left = False
        for call, kind in here.items():
            if call not in self._until_s:
                times = self._exhausted.get(kind, 0)
                self._until_s[call] = now_s + ALLOWANCE_S / _LESS_AFTER**times
                self._kinds[call] = kind
            if now_s < self._until_s[call]:
                is_left = True
            elif call not in self._late:
                self._late.add(call)
                self._exhausted[kind] = min(self._exhausted.get(kind, 0) + 1, _EXHAUSTED_MAX)
        return is_left
