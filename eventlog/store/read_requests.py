"""Read requests: readings that yield what they read, so that one text serves two kinds of callers.

A reading is a generator of requests; it is sent the answers, and returns its result. `run_reading`
answers from an event loop, `run_reading_blocking` for callers that have none. NotFound reaches the
reading.
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
    """A request for the entries with this prefix after this key."""

    prefix: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class GetRequest:
    """A request for all of an object."""

    key: str


@dataclass(frozen=True, slots=True)
class GetRangesRequest:
    """A request for parts of objects: (key, start, length)."""

    parts: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause (seconds) in which a writer of the same files can go on; none where files never
    change."""

    seconds: float


ReadRequest = ListRequest | GetRequest | GetRangesRequest | Pause
Steps = Generator[ReadRequest, object, T]


def list_entries(prefix: str, *, after: str | None = None) -> Steps[Entries]:
    """Return the entries with a prefix."""
    answer = yield ListRequest(prefix, after)
    assert isinstance(answer, list)
    return answer


def read_whole(key: str) -> Steps[bytes]:
    """Return an object's bytes; raises NotFound."""
    answer = yield GetRequest(key)
    assert isinstance(answer, bytes)
    return answer


def read_parts(*parts: tuple[str, int, int]) -> Steps[list[bytes]]:
    """Return parts of objects, read together; raises NotFound."""
    answer = yield GetRangesRequest(parts)
    assert isinstance(answer, list)
    return answer


def pause(seconds: float) -> Steps[None]:
    """Pause for so many seconds, which may be 0."""
    if seconds:
        yield Pause(seconds)


async def run_reading(store: Store, steps: Steps[T]) -> T:
    """Run a reading to its end without blocking the loop; return its result."""
    if isinstance(store, LocalStore) and store.reads_at_once:
        # A change of threads costs more than a small reading from a disk.
        return await store.in_thread(lambda: run_reading_blocking(store, steps))
    try:
        request = next(steps)
        while True:
            try:
                answer = await _answer(store, request)
            except NotFound as error:
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def run_reading_blocking(store: Store, steps: Steps[T]) -> T:
    """Run a reading to its end; return its result."""
    try:
        request = next(steps)
        while True:
            try:
                answer = _answer_blocking(store, request)
            except NotFound as error:
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _answer(store: Store, request: ReadRequest) -> object:
    if isinstance(request, ListRequest):
        return await store.list(request.prefix, after=request.after)
    if isinstance(request, GetRequest):
        return await store.get(request.key)
    if isinstance(request, Pause):
        await asyncio.sleep(request.seconds if isinstance(store, LocalStore) else 0)
        return None
    return list(await asyncio.gather(*(store.get_range(*part) for part in request.parts)))


def _answer_blocking(store: Store, request: ReadRequest) -> object:
    if isinstance(request, ListRequest):
        return store.list_blocking(request.prefix, after=request.after)
    if isinstance(request, GetRequest):
        return store.get_blocking(request.key)
    if isinstance(request, Pause):
        if isinstance(store, LocalStore):
            time.sleep(request.seconds)
        return None
    return [store.get_range_blocking(*part) for part in request.parts]
