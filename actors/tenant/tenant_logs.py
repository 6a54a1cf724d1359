"""TenantLogs: what tenant code prints, logs and dies of, on its way to tails and the actor's log.

A record is a dict: `kind` ("log", "exit" for the end of an isolate, "dropped" where no line came
that could tell of lost ones), `tenant_id`, `workflow`, `instance_id` (both None outside instances),
`step`, `attempt`, `code_hash`, `level`, `text`, `ts`, `dropped` (lines that were lost before this
one), `replayed` (`run` has most likely said it before: such records come only where
`tail_replays` asks for them). Nothing in it can steer a terminal.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic_ns
from typing import Any

from dynamic_workflows.eventlog.clock import Clock, to_datetime
from dynamic_workflows.eventlog.token_bucket import TokenBucket
from dynamic_workflows.loaders.guest.logs import DROPPED, TOLD_S
from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.isolates.interface import Exit
from dynamic_workflows.loaders.protocol import messages

from ..background_tasks import stop_all
from ..hosting.code_host import Host
from ..instances.decisions import Key

_logger = logging.getLogger("dynamic_workflows.tenant_code")
_tail_logger = logging.getLogger("dynamic_workflows.tenant")

# A guest of ours keeps to less by itself; these hold for one that was tampered with.
LINES_PER_S = 2_000
LOGGED_PER_S = 200
"""Of which so many go into the actor's log, which lies on a disk that tenants share."""
_LOGGED_CHARACTERS_MAX = 2_000
_NAME_CHARACTERS_MAX = 256
_WAITING_MAX = 10_000
_CLOSE_S = 1.0
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class TenantLogs:
    """The records of one tenant."""

    def __init__(self, tenant_id: str, clock: Clock) -> None:
        self._tenant_id = tenant_id
        self._clock = clock
        self._queues: dict[Host, _Queue] = {}
        self._rate = TokenBucket(LINES_PER_S, burst=LINES_PER_S)
        self._logged = TokenBucket(LOGGED_PER_S, burst=LOGGED_PER_S)
        self._unlogged = 0
        self._dropped = 0
        self._dropped_by: Host | None = None
        """Whose lines were dropped last."""
        self._telling: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.lines = 0
        """Passed on so far."""
        self.lines_dropped = 0

    @property
    def is_idle(self) -> bool:
        """Whether every tail has what it is to get."""
        return not self._queues and self._telling is None

    def log(self, host: Host, key: Key | None, log: messages.Log) -> None:
        """The guest printed."""
        dropped, lines = max(0, log.dropped), 0 if log.level == DROPPED else 1
        if not self._rate.take(1, monotonic_ns() // 1000):
            self._drop(host, dropped + lines)
            self.lines_dropped += dropped + lines
            return
        self.lines += lines
        self.lines_dropped += dropped
        dropped, self._dropped = dropped + self._dropped, 0
        if log.level == DROPPED:
            self._pass_dropped(host, key, dropped)
            return
        level = log.level if log.level in _LEVELS else "info"
        step = None if log.step is None else plain(log.step, _NAME_CHARACTERS_MAX)
        attempt = log.attempt if step is not None else 0
        self._pass(host, key, "log", level, plain(log.text), step, attempt, dropped, log.is_replay)

    def _drop(self, host: Host, lines: int) -> None:
        self._dropped += lines
        self._dropped_by = host
        self._tell_later()

    def _tell_later(self) -> None:
        """The next line tells what was dropped; if none comes, we have to."""
        if self._telling is None and not self._is_closed:
            self._telling = asyncio.get_running_loop().call_later(TOLD_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        dropped, self._dropped = self._dropped, 0
        host, self._dropped_by = self._dropped_by, None
        if dropped and host is not None:
            self._pass_dropped(host, None, dropped)
        if self._unlogged:
            _logger.warning("tenant %r: %d lines dropped before", self._tenant_id, self._unlogged)
            self._unlogged = 0

    def _pass_dropped(self, host: Host, key: Key | None, dropped: int) -> None:
        text = f"{dropped} lines were dropped"
        self._pass(host, key, DROPPED, "warning", text, None, 0, dropped)

    def ended(
        self, host: Host, key: Key | None, exit: Exit, step: str | None, attempt: int
    ) -> None:
        """The isolate died of something; `step` is what most likely did it."""
        level = "error" if exit.is_tenants_own else "warning"
        where = "" if step is None else f' in step "{step}"'
        text = plain(f"the isolate ended: {exit.reason}{where}")
        dropped, self._dropped = self._dropped, 0
        step = None if step is None else plain(step, _NAME_CHARACTERS_MAX)
        self._pass(host, key, "exit", level, text, step, attempt, dropped)

    def _pass(
        self,
        host: Host,
        key: Key | None,
        kind: str,
        level: str,
        text: str,
        step: str | None,
        attempt: int,
        dropped: int,
        is_replay: bool = False,
    ) -> None:
        workflow, instance_id = key or (None, None)
        line = None if kind == DROPPED else text
        self._write(_LEVELS[level], (workflow, instance_id, step), line, dropped)
        if host.bundle is None or not host.bundle.tails:
            return
        record = {
            "kind": kind,
            "tenant_id": self._tenant_id,
            "workflow": workflow,
            "instance_id": instance_id,
            "step": step,
            "attempt": attempt,
            "code_hash": host.code_hash,
            "level": level,
            "text": text,
            "ts": to_datetime(self._clock.now_us()),
            "dropped": dropped,
            "replayed": is_replay,
        }
        queue = self._queues.get(host)
        if queue is None:
            queue = self._queues[host] = _Queue(host, self._tenant_id)
            self._deliver(host, queue)
        queue.add(record)

    def _deliver(self, host: Host, queue: _Queue) -> None:
        queue.start()
        queue.task.add_done_callback(lambda done: self._drained(host, queue))

    def _drained(self, host: Host, queue: _Queue) -> None:
        if queue.is_waiting and not self._is_closed:
            # These came after the last look, and before anybody heard that it was the last.
            self._deliver(host, queue)
            return
        del self._queues[host]
        if queue.dropped:
            self._drop(host, queue.dropped)

    def _write(
        self, level: int, place: tuple[str | None, ...], text: str | None, dropped: int
    ) -> None:
        """Into the actor's log; None: there is only the number of dropped lines to tell."""
        if not _logger.isEnabledFor(level):
            return
        if not self._logged.take(1, monotonic_ns() // 1000):
            self._unlogged += dropped + (text is not None)
            self._tell_later()
            return
        dropped, self._unlogged = dropped + self._unlogged, 0
        lost = f" ({dropped} lines dropped before)" if dropped else ""
        where = plain("/".join(part for part in place if part))
        text = text or ""
        if len(text) > _LOGGED_CHARACTERS_MAX:
            text = text[:_LOGGED_CHARACTERS_MAX] + "…"
        text = text.replace("\n", "\n    | ")  # so that nobody can forge a line of its own
        _logger.log(level, "tenant %r %s:%s %s", self._tenant_id, where, lost, text)

    async def close(self) -> None:
        """Let the tails have what is on its way, for a moment."""
        self._is_closed = True
        if self._telling is not None:
            self._telling.cancel()
            self._tell()
        tasks = [queue.task for queue in self._queues.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        await stop_all(tasks)


class _Queue:
    """What the tails of one isolate's code have not been given yet; one delivery at a time."""

    def __init__(self, host: Host, tenant_id: str) -> None:
        self._host = host
        self._tenant_id = tenant_id
        self._waiting: deque[dict[str, object]] = deque()
        self.dropped = 0
        """Lines that found no room, and that no record has told of yet."""
        self.task: asyncio.Future[None]

    @property
    def is_waiting(self) -> bool:
        """Whether there are records that no tail has."""
        return bool(self._waiting)

    def start(self) -> None:
        """Begin to deliver what is there."""
        self.task = asyncio.ensure_future(self._deliver())

    def add(self, record: dict[str, Any]) -> None:
        """Queue a record; one too many is counted in the next that finds room."""
        if len(self._waiting) >= _WAITING_MAX:
            self.dropped += record["dropped"] + 1
            return
        record["dropped"] += self.dropped
        self.dropped = 0
        self._waiting.append(record)

    async def _deliver(self) -> None:
        await asyncio.sleep(0)  # what is printed in one turn travels together
        assert self._host.services is not None
        while self._waiting:
            records = list(self._waiting)
            self._waiting.clear()
            try:
                await self._host.services.tail(records)
            except Exception as error:  # a tail is an observer: its mistakes are its own
                _tail_logger.warning(
                    "tenant %r: a tail failed on %d records: %r",
                    self._tenant_id,
                    len(records),
                    error,
                )
