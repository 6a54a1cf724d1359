"""Streams: who waits for the end of a run, and who follows its events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from dynamic_workflows.eventlog.clock import US
from dynamic_workflows.eventlog.events import TERMINAL_TYPES, Row, row_bytes, unfold

from ..instances.decisions import Key

FEED_BYTES_MAX = 256 * 1024
"""Bytes of the newest rows of one instance that are held for those who follow it."""
FEEDS_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of such rows of a tenant; who is behind them reads on from the log."""
FEEDS_MAX = 4_096
"""Instances of a tenant of which such rows are held, beside those that are followed right now."""
_LAST_BYTES = 1_024
"""The newest row stays if it is no larger: that of a deletion is in no log that could be read."""
_UNUSED_US = 120 * US


class Waiters:
    """Futures by instance: those who wait for something to happen to it."""

    def __init__(self) -> None:
        self._by_key: dict[Key, dict[asyncio.Future[None], None]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: Key, future: asyncio.Future[None] | None = None) -> asyncio.Future[None]:
        """A future for the next `wake`: a new one, or this."""
        if future is None:
            future = asyncio.get_running_loop().create_future()
        self._by_key.setdefault(key, {})[future] = None
        return future

    def remove(self, key: Key, future: asyncio.Future[None]) -> None:
        """Nobody waits for this one any more."""
        waiting = self._by_key.get(key)
        if waiting is not None and future in waiting:
            del waiting[future]
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
        self.bytes = 0
        self.users = 0
        self.used_us = now_us

    def add(self, row: Row, bytes_max: int) -> None:
        """One more row, durable; older ones go until what is left is no more than `bytes_max`."""
        for one in unfold(row):
            self.rows.append(one)
            self.bytes += row_bytes(one)
        while self.bytes > bytes_max and (len(self.rows) > 1 or self.bytes > _LAST_BYTES):
            oldest = self.rows.popleft()
            self.bytes -= row_bytes(oldest)
            self.since_seq = oldest.seq

    def after(self, cursor: int) -> list[Row] | None:
        """The rows after the cursor; None when they have to be read from the log."""
        if cursor < self.since_seq:
            return None
        return [row for row in self.rows if row.seq > cursor]


class Feeds:
    """The feeds of a tenant, and who waits for their next row."""

    def __init__(self) -> None:
        self._feeds: dict[Key, Feed] = {}
        self._bytes = 0
        self.waiters = Waiters()

    def __len__(self) -> int:
        return len(self._feeds)

    @property
    def bytes(self) -> int:
        """Bytes of the rows that are held."""
        return self._bytes

    def open(self, key: Key, *, last_seq: int, now_us: int) -> Feed:
        """The feed of an instance, made when it is first followed."""
        feed = self._feeds.pop(key, None)
        if feed is None:
            feed = Feed(last_seq, now_us)
            if len(self._feeds) >= FEEDS_MAX:
                self._drop_oldest()
        self._feeds[key] = feed  # the last of all: it was used last
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
                before = feed.bytes
                room = FEEDS_BYTES_MAX - (self._bytes - before)
                feed.add(row, max(0, min(FEED_BYTES_MAX, room)))
                self._bytes += feed.bytes - before
                woken.add(key)
        for key in woken:
            self.waiters.wake(key)

    def sweep(self, now_us: int) -> None:
        """Drop feeds that nobody has asked for in a while."""
        for key, feed in list(self._feeds.items()):
            if not feed.users and feed.used_us < now_us - _UNUSED_US:
                self._drop(key)

    def _drop_oldest(self) -> None:
        unused = next((key for key, feed in self._feeds.items() if not feed.users), None)
        if unused is not None:
            self._drop(unused)

    def _drop(self, key: Key) -> None:
        self._bytes -= self._feeds.pop(key).bytes

    @property
    def is_used(self) -> bool:
        """Whether a poll is waiting right now."""
        return len(self.waiters) > 0


class Subscriptions:
    """All callers that wait for something to happen to an instance of one tenant."""

    def __init__(self) -> None:
        self.results = Waiters()
        """Those that wait for the end of a run."""
        self.changes = Waiters()
        """Those that wait for any change; for the testing kit."""
        self.feeds = Feeds()
        """Those that follow events."""

    def wake_all(self) -> None:
        """Let every caller look again, since the tenant stops."""
        self.results.wake_all()
        self.changes.wake_all()
        self.feeds.waiters.wake_all()


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
