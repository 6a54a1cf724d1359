"""IsolateScaler: where one more lifetime goes while code may have several isolates.

One isolate runs on one processor. When all that the code has are busy at every look, another is
started, up to `isolates_max`; what comes goes to the one with least to do. A burst that comes
before anybody could see how busy an isolate is waits for that, a tenth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from dynamic_workflows.loaders.isolates.interface import Isolate

AT_ONCE = 8
"""What an isolate takes before anybody looks whether it is busy."""
_LOOK_S = 0.02
_LOOKS = 5
_REST_S = 5.0
"""No isolate is added for so long after adding one failed."""


class BusySamples:
    """The last looks at an isolate."""

    def __init__(self) -> None:
        self._seen: list[bool] = []

    def add(self, is_busy: bool) -> None:
        """One more look."""
        self._seen = [*self._seen[1 - _LOOKS :], is_busy]

    @property
    def are_enough(self) -> bool:
        """Whether they tell something."""
        return len(self._seen) >= _LOOKS

    @property
    def is_busy(self) -> bool:
        """Whether it was busy (nearly) every time."""
        return self.are_enough and sum(self._seen) >= _LOOKS - 1


class ScaledHost(Protocol):
    """A host of code, as its isolates are counted."""

    busy_samples: BusySamples
    is_ready: bool
    """Its code is loaded."""
    isolate: Isolate | None

    @property
    def load(self) -> int:
        """Lifetimes and calls that are in its isolate."""
        ...


HostT = TypeVar("HostT", bound=ScaledHost)


class IsolateScaler(Generic[HostT]):
    """Places lifetimes in isolates, and samples how busy these are while they are many."""

    def __init__(
        self,
        isolates_max: int,
        *,
        hosts: Callable[[], Sequence[HostT]],
        grow: Callable[[HostT], None],
        on_room: Callable[[], None],
    ) -> None:
        """`grow` starts another isolate beside this one; `on_room`: `place` may succeed."""
        self._isolates_max = isolates_max
        self._hosts = hosts
        self._grow = grow
        self._on_room = on_room
        self._timer: asyncio.TimerHandle | None = None
        self._is_wanted = False
        self._not_before_s = 0.0

    def place(self, host: HostT, others: Sequence[HostT]) -> HostT | None:
        """The isolate for one more lifetime: of `host` and the `others` of its code.

        None: it is being found out; `on_room` follows.
        """
        if self._isolates_max == 1:
            return host
        ready = [one for one in (host, *others) if one.is_ready]
        best = min(ready, key=lambda one: one.load, default=host)
        if best.load < AT_ONCE:
            return best
        self._look_later()
        free = [
            one for one in ready if one.busy_samples.are_enough and not one.busy_samples.is_busy
        ]
        if free:
            return min(free, key=lambda one: one.load)
        count = 1 + len(others)
        is_growing = len(ready) < count
        if not is_growing and (count >= self._isolates_max or self._is_resting()):
            return best
        if not is_growing and all(one.busy_samples.is_busy for one in ready):
            self._grow(host)
        self._is_wanted = True
        return None

    def growth_failed(self) -> None:
        """No more isolates for a while."""
        self._not_before_s = asyncio.get_running_loop().time() + _REST_S
        self._on_room()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _is_resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._not_before_s

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        is_full = False
        for host in self._hosts():
            if host.is_ready and host.isolate is not None:
                host.busy_samples.add(host.isolate.is_busy)
                is_full = is_full or host.load >= AT_ONCE
        if self._is_wanted:
            self._is_wanted = False
            self._on_room()  # whoever finds no room yet wants it again
        if is_full or self._is_wanted:
            self._look_later()
