"""Streams: who waits for the end of a run, and who follows its events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from ..eventlog.clock import US
from ..eventlog.events import TERMINAL_TYPES, Row, unfold
from .decisions import Key

_ROWS_MAX = 10_000
_UNUSED_US = 120 * US


class Waiters:
    """Futures by instance: those who wait for something to happen to it."""

    def __init__(self) -> None:
        self._by_key: dict[Key, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: Key) -> asyncio.Future[None]:
        """A future for the next `wake`."""
        future = asyncio.get_running_loop().create_future()
        self._by_key.setdefault(key, []).append(future)
        return future

    def remove(self, key: Key, future: asyncio.Future[None]) -> None:
        """Nobody waits for this one any more."""
        waiting = self._by_key.get(key)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._by_key[key]

    def wake(self, key: Key) -> None:
        """It happened."""
        for future in self._by_key.pop(key, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Let everybody look again."""
        for key in list(self._by_key):
            self.wake(key)


class Feed:
    """The newest rows of one instance that somebody follows."""

    def __init__(self, since_seq: int, now_us: int) -> None:
        self.since_seq = since_seq
        """Every row after this one is in `rows`."""
        self.rows: deque[Row] = deque()
        self.users = 0
        self.used_us = now_us

    def add(self, row: Row) -> None:
        """One more row, durable."""
        self.rows.extend(unfold(row))
        while len(self.rows) > _ROWS_MAX:
            self.since_seq = self.rows.popleft().seq

    def after(self, cursor: int) -> list[Row] | None:
        """The rows after the cursor; None when they have to be read from the log."""
        if cursor < self.since_seq:
            return None
        return [row for row in self.rows if row.seq > cursor]


class Feeds:
    """The feeds of a tenant, and who waits for their next row."""

    def __init__(self) -> None:
        self._feeds: dict[Key, Feed] = {}
        self.waiters = Waiters()

    def open(self, key: Key, *, last_seq: int, now_us: int) -> Feed:
        """The feed of an instance, made when it is first followed."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(last_seq, now_us)
        feed.users += 1
        feed.used_us = now_us
        return feed

    def of(self, key: Key) -> Feed | None:
        """The feed, if somebody follows the instance."""
        return self._feeds.get(key)

    def release(self, feed: Feed) -> None:
        """One poll less."""
        feed.users -= 1

    def publish(self, rows: Iterable[Row]) -> None:
        """Rows became durable."""
        if not self._feeds:
            return
        woken = set()
        for row in rows:
            key = (row.workflow, row.instance_id)
            feed = self._feeds.get(key)
            if feed is not None:
                feed.add(row)
                woken.add(key)
        for key in woken:
            self.waiters.wake(key)

    def sweep(self, now_us: int) -> None:
        """Drop feeds that nobody has asked for in a while."""
        for key, feed in list(self._feeds.items()):
            if not feed.users and feed.used_us < now_us - _UNUSED_US:
                del self._feeds[key]

    @property
    def is_used(self) -> bool:
        """Whether a poll is waiting right now."""
        return len(self.waiters) > 0


def ends(row: Row) -> bool:
    """Whether a subscription is over with this row."""
    return row.type in TERMINAL_TYPES or row.type == "workflow_deleted"


def page(rows: list[Row], cursor: int) -> tuple[list[Row], int, bool]:
    """The rows after the cursor up to the end of the run: rows, next cursor, whether it ended."""
    taken: list[Row] = []
    for row in rows:
        if row.seq <= cursor:
            continue
        taken.append(row)
        if ends(row):
            return taken, row.seq, True
    return taken, taken[-1].seq if taken else cursor, False
