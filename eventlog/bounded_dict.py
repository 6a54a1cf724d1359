"""BoundedDict: a dict that keeps what was set last."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """At most `most` keys, in the order in which they were set last; beyond that the first goes.

    Reading changes nothing: where what is read has to stay, a cache is what is wanted. It cannot
    be copied by `copy`, or pickled.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)
