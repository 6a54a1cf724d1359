"""Heft: how much the large values of loaded instances take, and whom to forget when it is much."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .decisions import Key

BYTES_MAX = 128 * 1024 * 1024
"""Of large values, before instances that rest are forgotten for their sake; half of it may stay."""


class Heft:
    """The bytes of large values by instance; those of small ones are not worth counting."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes: dict[Key, int] = {}
        self._total = 0

    def add(self, key: Key, size: int) -> None:
        """An instance holds so many bytes more."""
        self._bytes[key] = self._bytes.get(key, 0) + size
        self._total += size

    def drop(self, key: Key) -> None:
        """An instance holds nothing any more."""
        self._total -= self._bytes.pop(key, 0)

    @property
    def is_too_much(self) -> bool:
        """Whether somebody should be forgotten."""
        return self._total > self._bytes_max

    def forget(self, resting: Iterable[Key], is_loaded: Callable[[Key], bool]) -> list[Key]:
        """Those of `resting` (longest at rest first) that are to be forgotten."""
        for key in [key for key in self._bytes if not is_loaded(key)]:
            self.drop(key)
        forgotten: list[Key] = []
        for key in resting:
            if self._total <= self._bytes_max // 2:
                break
            if key in self._bytes:
                self.drop(key)
                forgotten.append(key)
        return forgotten
