"""Wishes: readings that say what they want to read, so that one text serves two kinds of callers.

A reading is a generator of wishes; it is sent the answers, and returns its result. `grant` answers
from an event loop, `grant_blocking` for callers that have none. NotFound reaches the reading.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from .base import Entries, NotFound, Store
from .local import LocalStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ListRequest:
    """The entries with this prefix after this key."""

    prefix: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class GetRequest:
    """All of an object."""

    key: str


@dataclass(frozen=True, slots=True)
class GetRangesRequest:
    """Parts of objects: (key, start, length)."""

    parts: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Time for a writer of the same files to go on (seconds); none where files never change."""

    seconds: float


ReadRequest = ListRequest | GetRequest | GetRangesRequest | Pause
Steps = Generator[ReadRequest, object, T]


def list_entries(prefix: str, *, after: str | None = None) -> Steps[Entries]:
    """A listing."""
    answer = yield ListRequest(prefix, after)
    assert isinstance(answer, list)
    return answer


def read_whole(key: str) -> Steps[bytes]:
    """An object; raises NotFound."""
    answer = yield GetRequest(key)
    assert isinstance(answer, bytes)
    return answer


def read_parts(*parts: tuple[str, int, int]) -> Steps[list[bytes]]:
    """Parts of objects, read together; raises NotFound."""
    answer = yield GetRangesRequest(parts)
    assert isinstance(answer, list)
    return answer


def pause(seconds: float) -> Steps[None]:
    """Some time, or none."""
    if seconds:
        yield Pause(seconds)


async def grant(store: Store, steps: Steps[T]) -> T:
    """Follow a reading to its end without blocking the loop; its result."""
    if isinstance(store, LocalStore) and store.reads_at_once:
        # A change of threads costs more than a small reading from a disk.
        return await store.in_thread(lambda: grant_blocking(store, steps))
    try:
        wish = next(steps)
        while True:
            try:
                answer = await _answer(store, wish)
            except NotFound as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def grant_blocking(store: Store, steps: Steps[T]) -> T:
    """Follow a reading to its end; its result."""
    try:
        wish = next(steps)
        while True:
            try:
                answer = _answer_blocking(store, wish)
            except NotFound as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _answer(store: Store, wish: ReadRequest) -> object:
    if isinstance(wish, ListRequest):
        return await store.list(wish.prefix, after=wish.after)
    if isinstance(wish, GetRequest):
        return await store.get(wish.key)
    if isinstance(wish, Pause):
        await asyncio.sleep(wish.seconds if isinstance(store, LocalStore) else 0)
        return None
    return list(await asyncio.gather(*(store.get_range(*part) for part in wish.parts)))


def _answer_blocking(store: Store, wish: ReadRequest) -> object:
    if isinstance(wish, ListRequest):
        return store.list_blocking(wish.prefix, after=wish.after)
    if isinstance(wish, GetRequest):
        return store.get_blocking(wish.key)
    if isinstance(wish, Pause):
        if isinstance(store, LocalStore):
            time.sleep(wish.seconds)
        return None
    return [store.get_range_blocking(*part) for part in wish.parts]
