"""Client: the calls of one tenant as a driver makes them, over Ray and through its accidents.

Calls that are made in one turn of the loop leave as one message. An answer that takes long (a
result, an event, a method of an entrypoint) does not hold up its neighbours: the tenant hands it
over later, to the one long poll that a client keeps open however many results it waits for.

Whatever happens to actors, a call goes on until it has an outcome: it is sent again to wherever the
tenant lives now, for `timeout_s` without any sign of life, then it fails with `Unavailable`. What
changes instances carries a token that the tenant's log keeps, so it is done once however often it
is sent. What else is sent twice may be done twice: a method of an entrypoint, a deploy.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import Any, TypeAlias, cast

import msgspec

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.errors import (
    InstanceError,
    PlatformClosed,
    Unavailable,
    WorkflowsError,
    needs_operator,
)
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.protocol.calls import (
    LONG_CALLS,
    AnswerT,
    AwaitResult,
    ChangeCall,
    DeleteInstance,
    GetEvents,
    GetStatus,
    TenantCall,
    TerminateInstance,
    op_of,
    pack_call,
)

from .actor_ref import ActorRef, ActorUnreachable
from .fork_guard import OwningProcess
from .services import CallOutcome, WorkerApi, remote
from .serving import NotServedHere

Resolve: TypeAlias = Callable[[str, str | None], Awaitable[ActorRef]]
"""(tenant id, name of the peer that did not serve it any more, or None) -> where the tenant is."""

BATCH_MAX = 2_000
"""Calls in one message."""
POLL_S = 10.0
"""Seconds that a long poll waits at the tenant."""
_BACKOFF = Backoff(0.01, 0.5, factor=3.0, jitter=0.25)
_MOVED_BACKOFF = Backoff(0.05, 30.0, factor=4.0, jitter=0.25)
"""Of results that wait for a tenant which sleeps."""

RESULT_GRACE_S = 0.5
"""How much longer than it was told a `result` waits: the tenant's own word comes first."""
_ROOM_TIMES = 4
"""A call waits so many times its limit while the loader looks for room for its tenant."""


class _PendingCall:
    __slots__ = ("body", "call", "future", "made", "number", "since", "timer", "tries")

    def __init__(self, number: int, call: TenantCall[Any]) -> None:
        self.number = number
        self.call = call
        self.body = pack_call(call)
        self.tries = 0
        self.made = self.since = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class TenantClient:
    """The calls of one tenant: what `loaders.calls.Calls` asks for. Belongs to one event loop."""

    def __init__(
        self, tenant_id: str, *, client_id: str, resolve: Resolve, timeout_s: float
    ) -> None:
        self._origin = OwningProcess()
        self._tenant_id = tenant_id
        self._client_id = client_id
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._pending: dict[int, _PendingCall] = {}
        self._queue: list[_PendingCall] = []
        self._handed: set[int] = set()
        self._forgotten: list[int] = []
        self._peer: ActorRef | None = None
        self._gone: str | None = None
        self._moves = 0
        self._failures = 0
        self._problem: Exception | None = None
        # A session is one unbroken connection: with each new one every call without an outcome is
        # sent again, and what still answers for an older one is ignored.
        self._session = 0
        self._down_since: float | None = None
        self._called = asyncio.Event()
        self._random = Random()
        self._is_flushing = False
        self._is_polling = False
        self._connecting: asyncio.Task[None] | None = None
        self._is_resolving = False
        self._heard = 0.0
        """When the tenant's actor last answered anything."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._closed: WorkflowsError = PlatformClosed("the platform was closed: connect again")

    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        """Carry out one operation; raises WorkflowsError, TimeoutError.

        PlatformBusy in a forked child: it has no connection of its own.

        It ends within its limit, whatever hangs: `result` and `events` within the time that they
        were given, what cannot take long within `timeout_s` once the tenant has a place.
        """
        self._origin.check()
        if self._is_closed:
            raise self._closed
        number = next(self._numbers)
        if isinstance(call, ChangeCall) and call.token is None:
            call = msgspec.structs.replace(call, token=f"{self._client_id}-{number}")
        pending = _PendingCall(number, call)
        self._pending[number] = pending
        self._queue.append(pending)
        self._called.set()
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        limit_s = self._limit_s(call)
        if limit_s is not None:
            self._look_after(pending, limit_s, limit_s)
        try:
            answer: AnswerT = await pending.future
            return answer
        except InstanceError as error:
            # The first try may have been carried out, and only its reply lost.
            if pending.tries > 1 and await self._was_done(call, error):
                return cast(AnswerT, None)
            raise
        finally:
            if pending.timer is not None:
                pending.timer.cancel()
            if self._pending.pop(number, None) is not None:
                self._forgotten.append(number)
                self._handed.discard(number)

    def _limit_s(self, call: TenantCall[Any]) -> float | None:
        """The seconds that a call has; None: as many as it takes while the tenant answers."""
        if isinstance(call, AwaitResult):
            timeout_s = call.timeout_s
            return None if timeout_s is None else max(0.0, timeout_s) + RESULT_GRACE_S
        if isinstance(call, GetEvents):
            return float(call.wait_s or 0.0) + self._timeout_s
        return None if isinstance(call, LONG_CALLS) else self._timeout_s

    def _look_after(self, call: _PendingCall, limit_s: float, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        call.timer = loop.call_later(after_s, self._overdue, call, limit_s)

    def _overdue(self, call: _PendingCall, limit_s: float) -> None:
        """End a call that has had its time, and say what did not answer."""
        if call.future.done():
            return
        now = time.monotonic()
        if not isinstance(call.call, LONG_CALLS):
            left_s = call.since + limit_s - now
            if self._waits_for_room(call) and now - call.made < _ROOM_TIMES * limit_s:
                left_s = limit_s / 4
            if left_s > 0:
                self._look_after(call, limit_s, left_s)
                return
        missing = self._missing(call)
        if isinstance(call.call, AwaitResult):
            timeout_s = limit_s - RESULT_GRACE_S
            call.future.set_exception(
                TimeoutError(f"the time of {timeout_s:g} s is up, and {missing}")
            )
            return
        call.future.set_exception(
            Unavailable(
                f"{op_of(call.call)} of tenant {self._tenant_id!r} had no answer in {limit_s:g} s: "
                f"{missing}: look there, then call again"
            )
        )

    def _waits_for_room(self, call: _PendingCall) -> bool:
        """Whether the loader, which lives, looks for a place; a search for an actor that has
        fallen silent is none."""
        return self._is_resolving and not call.tries and not self._failures

    def _missing(self, call: _PendingCall) -> str:
        """What a call waits for, as far as it can be told from here."""
        because = "" if self._problem is None else f" ({self._problem})"
        if self._waits_for_room(call):
            return f"the loader has found no place for the tenant{because}"
        if self._peer is None:
            return f"its actor does not answer{because}"
        if self._heard >= call.since:
            return (
                f"its actor {self._peer.name} lives, but what that one needs does not answer: the "
                "store of the log, the code's callback, or the timer actor"
            )
        return f"its actor {self._peer.name} does not answer"

    async def _was_done(self, call: TenantCall[Any], error: InstanceError) -> bool:
        if isinstance(call, DeleteInstance):
            return error.code == "instance.not_found"
        if isinstance(call, TerminateInstance) and error.code == "instance.cannot_terminate":
            found = await self.call(GetStatus(workflow=call.workflow, id=call.id))
            return found.status == "terminated"
        return False

    def close(self, error: WorkflowsError | None = None) -> None:
        """Fail what has no outcome yet with this error, or PlatformClosed; later calls too."""
        self._is_closed = True
        if error is not None:
            self._closed = error
        under_way = PlatformClosed("the platform was closed while the call was under way")
        self._fail(under_way if error is None else error)
        for task in self._tasks:
            task.cancel()

    def _flush(self) -> None:
        self._is_flushing = False
        if self._is_closed:
            return
        if self._peer is None:
            self._connect()
            return
        queue, self._queue = self._queue, []
        for first in range(0, len(queue), BATCH_MAX):
            batch = [call for call in queue[first : first + BATCH_MAX] if not call.future.done()]
            self._spawn(self._submit(self._peer, self._session, batch))

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _submit(self, peer: ActorRef, session: int, batch: list[_PendingCall]) -> None:
        await self._exchange(peer, session, batch, 0.0)
        if session == self._session:
            self._handed.update(call.number for call in batch if call.number in self._pending)
            self._poll()

    def _poll(self) -> None:
        if self._handed and self._peer is not None and not self._is_polling:
            self._is_polling = True
            self._spawn(self._poll_on(self._peer, self._session))

    async def _poll_on(self, peer: ActorRef, session: int) -> None:
        try:
            while self._handed and session == self._session and self._peer is not None:
                await self._exchange(peer, session, [], POLL_S)
        finally:
            self._is_polling = False
        self._poll()

    async def _exchange(
        self, peer: ActorRef, session: int, batch: list[_PendingCall], wait_s: float
    ) -> None:
        """One message and its answers; a lost one ends the session."""
        forgotten, self._forgotten = self._forgotten, []
        calls = [(call.number, call.body) for call in batch]
        for call in batch:
            call.tries += 1
        try:
            exchange = remote(peer, WorkerApi.exchange, timeout_s=wait_s + self._timeout_s)
            answers = await exchange(
                self._tenant_id, f"{self._client_id}/{session}", calls, forgotten, wait_s
            )
        except (ActorUnreachable, Unavailable) as error:
            self._note(error)
            self._failures += 1
            if needs_operator(error) and session == self._session and self._peer is not None:
                # It does not get better by itself, and whoever waits can do something about it.
                self._gone, self._peer = self._peer.name, None
                self._fail(error)
                return
            self._disconnect(session)
            return
        except NotServedHere:
            self._moves += 1
            self._disconnect(session)
            return
        except Exception as error:
            # The tenant cannot be opened: this is the outcome of every call that waits for it.
            if session == self._session and self._peer is not None:
                self._gone, self._peer = self._peer.name, None
                self._fail(error)
            return
        self._down_since = None
        self._failures = 0
        self._problem = None
        self._heard = time.monotonic()
        if batch:
            self._moves = 0
        self._deliver(answers)

    def _note(self, error: Exception) -> None:
        """Keep the reason that says most: that an actor is gone follows from what ended it."""
        if not (isinstance(error, ActorUnreachable) and isinstance(self._problem, Unavailable)):
            self._problem = error

    def _deliver(self, answers: Iterable[CallOutcome]) -> None:
        for number, has_succeeded, value in answers:
            call = self._pending.pop(number, None)
            self._handed.discard(number)
            if call is None or call.future.done():
                continue
            if has_succeeded:
                call.future.set_result(value)
            else:
                call.future.set_exception(value)

    def _disconnect(self, session: int) -> None:
        if session != self._session or self._peer is None:
            return
        self._gone, self._peer = self._peer.name, None
        self._connect()

    def _connect(self) -> None:
        if self._connecting is None and not self._is_closed:
            self._connecting = self._spawn(self._connect_now())

    async def _connect_now(self) -> None:
        try:
            for tries in itertools.count():
                if tries or self._moves or self._failures > 1:
                    await self._rest(tries + max(0, self._failures - 1))
                if not self._pending:
                    return
                if await self._try_to_connect():
                    return
        finally:
            self._connecting = None
            if self._peer is not None or self._queue:
                self._flush()

    async def _try_to_connect(self) -> bool:
        """Find the tenant; True when there is nothing more to try."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
        if now - self._down_since >= self._timeout_s:
            self._fail(
                Unavailable(
                    f"tenant {self._tenant_id!r} did not answer for {self._timeout_s:g} s "
                    f"({self._problem}): look at the cluster, then call again"
                )
            )
            return True
        try:
            mark("driver: asks for the worker")
            self._is_resolving = True
            self._peer = await self._resolve(self._tenant_id, self._gone)
            mark("driver: knows the worker")
        except (ActorUnreachable, Unavailable) as error:
            self._note(error)
            if needs_operator(error):
                self._fail(error)
                return True
            return False
        except Exception as error:
            self._fail(error)
            return True
        finally:
            self._is_resolving = False
        # While the loader finds room for the tenant, the tenant is not silent.
        self._down_since += time.monotonic() - now
        self._gone = None
        self._session += 1
        self._forgotten = []
        self._handed.clear()
        self._queue = list(self._pending.values())
        now = time.monotonic()
        for call in self._queue:
            if not call.tries:
                call.since = now
        return True

    async def _rest(self, tries: int) -> None:
        """Wait before the next try; long when nobody waits but for results of a sleeping tenant."""
        if (
            any(not isinstance(one.call, LONG_CALLS) for one in self._pending.values())
            or not self._moves
        ):
            await asyncio.sleep(_BACKOFF.rest_s(tries, self._random))
            return
        self._called.clear()
        rest_s = _MOVED_BACKOFF.rest_s(self._moves, self._random)
        try:
            await asyncio.wait_for(self._called.wait(), rest_s)
        except TimeoutError:
            pass

    def _fail(self, error: Exception) -> None:
        self._down_since = None
        pending, self._pending, self._queue = self._pending, {}, []
        self._handed.clear()
        for call in pending.values():
            if not call.future.done():
                call.future.set_exception(error)
