"""Worker process: waits blank for a tenant, serves it until it sleeps, and is blank again.

It is blank until the loader assigns it a tenant; it opens the tenant, answers its calls, and lets
go of it when it goes to sleep. It serves one tenant at a time. A call for a tenant that it does not
serve (any more) gets `NotServedHere`, and the caller asks the loader again.

Order of going to sleep: calls are refused, the log is closed, the timer actor has acknowledged the
tenant's next due time, everything of the tenant is dropped, the process is blank, the loader knows.
A crash before the acknowledgement leaves the tenant on the timer actor's list of open tenants, and
so it is opened again; after it, the timer wakes the tenant when it is due, whatever the loader
believes by then. A process that could not let go of everything, or has served `tenants_max`
tenants, tells the loader and ends.

Each time that it becomes blank begins a generation. An assignment names the generation that it is
for, and one for an earlier generation is refused: it was sent before the process let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, TypeAlias

import msgspec

from dynamic_workflows.eventlog.bounded_dict import BoundedDict
from dynamic_workflows.eventlog.clock import US, Clock, TimerHandle
from dynamic_workflows.eventlog.errors import (
    Unavailable,
    WorkflowsError,
    needs_operator,
)
from dynamic_workflows.eventlog.tracing import mark

from ..background_tasks import BackgroundTasks, seen
from ..code.code_resolver import PrefetchedCode
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import CallOutcome, LoaderApi, P, TimerApi, remote
from ..rpc.serving import NotServedHere
from ..timers.open_registration import OpenRegistration
from .client_session import ClientSession, ServedTenant
from .worker_state import WorkerState, after

GRACE_S = 0.02
"""How long a message waits for its slower calls before the quicker ones are answered."""
SESSION_KEPT_S = 120.0
"""How long a client's outcomes are kept for it after its last message."""
ASSIGNMENT_S = 1.0
"""How long a client waits at a blank worker process for its tenant to come."""
CLAIMS_MAX = 10
"""How often a worker process takes a log over because the timer knows a higher epoch of it."""
SESSIONS_REFUSED_MAX = 1_000
"""Ended sessions of earlier tenants that are known, and refused at once."""
CALLS_END_S = 5.0
"""How long the calls of a closed tenant may take to end in a process that is to be used again."""
SLEEP_COSTS_MAX_S = 60.0
"""A sleep that is longer than this is worth a process, however slow the machine is."""
_IDLE_CHECK_S = 1.0
_logger = logging.getLogger("dynamic_workflows.worker")


OpenTenant: TypeAlias = Callable[[str, bool, Callable[[int], None], int], Awaitable[ServedTenant]]
"""(tenant id, whether a client wants it, who is told the epoch that the owner is about to have,
what the epoch is above) -> the tenant, its log replayed and owned."""


class WorkerStats(msgspec.Struct):
    """What one worker process has done."""

    pid: int
    messages: int = 0
    """From clients, long polls included."""
    calls: int = 0
    isolate_pids: list[int] = []


async def _nothing_left() -> bool:
    return True


class WorkerProcess:
    """One process for one tenant at a time. Its methods are called by other actors."""

    def __init__(
        self,
        name: str,
        *,
        open_tenant: OpenTenant,
        loader: Callable[[], Awaitable[ActorRef]],
        timer: Callable[[], Awaitable[ActorRef]],
        clock: Clock,
        idle_s: float,
        start_s: float = 0.0,
        on_assigned: Callable[[str], None] = lambda tenant_id: None,
        on_code: Callable[[Any], None] = lambda code: None,
        on_released: Callable[[], Awaitable[bool]] = _nothing_left,
        on_end: Callable[[], None] = lambda: None,
        tenants_max: int = 1,
    ) -> None:
        """`start_s`: how long the process took to get ready, which another one will take too.

        `on_released` drops what else the process holds of a closed tenant, and returns whether
        nothing is left. `tenants_max`: the tenants that it serves, one after the other.
        """
        self._name = name
        self._start_us = round(start_s * US)
        self._opening_us = 0
        self._open_tenant = open_tenant
        self._loader = loader
        self._timer = timer
        self._clock = clock
        self._idle_us = round(idle_s * US)
        self._on_assigned = on_assigned
        self._on_code = on_code
        self._on_released = on_released
        self._on_end = on_end
        self._tenants_left = tenants_max
        self._generation = 0
        self._early_code: tuple[str, int, PrefetchedCode] | None = None
        """Code that came before its assignment."""
        self._ended_sessions: BoundedDict[tuple[str, str], None] = BoundedDict(SESSIONS_REFUSED_MAX)
        """Tenant and session: clients of different tenants may use the same id."""
        self._must_end = False
        self._reports = BackgroundTasks()
        self._state = WorkerState.BLANK
        self._tenant_id: str | None = None
        self._tenant: ServedTenant | None = None
        self._stopped: ServedTenant | None = None
        """What its disk has stopped, until it is closed and opened again."""
        self._opening: asyncio.Future[ServedTenant] | None = None
        self._assigned = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._sessions: dict[str, ClientSession] = {}
        self._stats = WorkerStats(pid=os.getpid())
        self._used_us = clock.now_us()
        self._idle_check: TimerHandle | None = None

    # --- what the loader calls

    async def assign(self, tenant_id: str, is_wanted: bool = False, generation: int = 0) -> bool:
        """Open this tenant's log and continue its instances. Harmless to repeat.

        `generation`: that of the process when it was blank; a process that was restarted begins
        again at 0, and takes the number over. `is_wanted`: a client asked for it, and is likely to
        create something next. Answers whether it was not open yet. Raises what opening raised
        (Corrupt, Unavailable, …), and so does every later call, until the loader ends this worker
        process or, where the disk is full, calls this once more; NotServedHere when it is another
        tenant's, is closing, or is of a later generation.
        """
        if (
            self._closing is not None
            or self._tenant_id not in (None, tenant_id)
            or generation < self._generation
        ):
            raise NotServedHere(f"{self._name} does not serve {tenant_id!r}")
        if self._tenant is not None and self._tenant.failed is not None:
            self._stop(self._tenant)
            if self._closing is not None:
                raise NotServedHere(f"{self._name} has lost {tenant_id!r}")
        was_open = self._state is WorkerState.OPEN
        if self._opening is None or self._has_failed_over_disk():
            mark("worker: is assigned")
            self._move("assign")
            self._tenant_id, self._generation = tenant_id, generation
            self._on_assigned(tenant_id)
            early, self._early_code = self._early_code, None
            if early is not None and early[:2] == (tenant_id, generation):
                self._on_code(early[2])
            self._opening = asyncio.ensure_future(self._open(tenant_id, is_wanted))
            self._assigned.set()
        await asyncio.shield(self._opening)
        return not was_open

    def _has_failed_over_disk(self) -> bool:
        """Whether the last try to open the tenant ended because the disk is full, or alike."""
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled():
            return False
        return needs_operator(opening.exception())

    def _stop(self, tenant: ServedTenant) -> None:
        """Handle a tenant that stopped by itself: end, or stay where only the disk failed."""
        failed = tenant.failed
        if self._closing is not None or failed is None or not needs_operator(failed):
            self._end()
            return
        self._move("lost")
        if self._idle_check is not None:
            self._idle_check.cancel()
            self._idle_check = None
        self._stopped, self._tenant = tenant, None
        self._opening = asyncio.get_running_loop().create_future()
        self._opening.set_exception(failed)
        seen(self._opening)

    async def _close_stopped(self) -> None:
        """Close a stopped tenant, which keeps processes and files until then."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None:
            with contextlib.suppress(Exception):  # whatever it is: the log is taken over anyway
                await stopped.close()

    async def _open(self, tenant_id: str, is_wanted: bool) -> ServedTenant:
        began_us = self._clock.now_us()
        await self._close_stopped()
        try:
            tenant = await self._open_listed(tenant_id, is_wanted)
        except BaseException:
            self._move("failed")
            raise
        # A call that is served must survive: from here on no crash may lose the tenant.
        mark("worker: serves")
        self._move("listed")
        self._tenant = tenant
        self._used_us = self._clock.now_us()
        self._opening_us = max(0, self._used_us - began_us)
        self._schedule_idle_check()
        return tenant

    async def _open_listed(self, tenant_id: str, is_wanted: bool) -> ServedTenant:
        above = 0
        for _ in range(CLAIMS_MAX):
            registration = OpenRegistration(tenant_id, self._timer)
            try:
                tenant = await self._open_tenant(tenant_id, is_wanted, registration.claim, above)
                try:
                    higher = await registration.confirmed(tenant.epoch)
                except BaseException:
                    with contextlib.suppress(Exception):
                        await tenant.close()
                    raise
            finally:
                registration.withdraw()
            if higher is None:
                return tenant
            # Another owner has opened it since, or the log is an older copy, put back.
            above = higher
            with contextlib.suppress(WorkflowsError):
                await tenant.close()
        raise Unavailable(f"tenant {tenant_id!r} is being opened elsewhere")

    async def take_code(self, tenant_id: str, code: PrefetchedCode, generation: int = 0) -> None:
        """Receive from the loader the code of the tenant; that for any other is dropped."""
        if self._tenant_id is None:
            self._early_code = (tenant_id, generation, code)
        elif (self._tenant_id, self._generation) == (tenant_id, generation):
            self._on_code(code)

    async def who(self) -> tuple[str | None, str, int]:
        """Return the tenant that is served here, the value of the `WorkerState`, and the
        generation."""
        return self._tenant_id, self._state.value, self._generation

    def _move(self, event: str) -> None:
        self._state = after(self._state, event)

    async def stats(self) -> WorkerStats:
        """Return what this process has done, for operators and tests."""
        pids = getattr(self._tenant, "isolate_pids", list)
        return msgspec.structs.replace(self._stats, isolate_pids=pids())

    async def make_room(self, tenant_id: str) -> bool:
        """Go to sleep if this tenant is idle; return whether it does."""
        if self._tenant_id != tenant_id:
            return False
        if self._closing is None and self._tenant is not None:
            if not self._tenant.is_idle() or any(s.is_quick() for s in self._sessions.values()):
                return False
            self._end()
        return self._closing is not None

    async def close(self) -> None:
        """Close the tenant, whatever it does, and end; its work continues when it is opened
        again."""
        self._must_end = True
        if self._closing is None:
            self._end()
        assert self._closing is not None
        await asyncio.shield(self._closing)

    # --- what clients call

    async def exchange(
        self,
        tenant_id: str,
        session_id: str,
        calls: list[tuple[int, bytes]],
        forgotten: list[int],
        wait_s: float,
    ) -> list[CallOutcome]:
        """Start these calls and return the outcomes that are ready, of earlier calls too.

        With calls: as soon as every quick one has its outcome (where none is quick: as soon as any
        has one), or after a short grace. Without: a long poll, as soon as there is an outcome, at
        the latest after `wait_s`. An outcome is (number, whether it succeeded, value or error), and
        is told once. Raises NotServedHere, and what opening the tenant raised.
        """
        mark("worker: gets a call")
        if (tenant_id, session_id) in self._ended_sessions:
            raise NotServedHere(f"{self._name} has let go of {tenant_id!r} since")
        tenant = await self._serving(tenant_id)
        self._used_us = self._clock.now_us()
        session = self._sessions.get(session_id)
        if session is None:
            if not calls and self._generation:
                # Its calls were made of an earlier tenancy, and would be waited for in vain.
                raise NotServedHere(f"{self._name} does not know the session")
            session = self._sessions[session_id] = ClientSession()
        self._stats.messages += 1
        self._stats.calls += len(calls)
        session.forget(forgotten)
        is_poll = session.start(tenant, calls)
        await session.wait(GRACE_S if calls else wait_s, is_poll=is_poll)
        session.used_us = self._clock.now_us()
        if (self._closing is not None or session.is_broken) and not session.outcomes:
            raise NotServedHere(f"{self._name} does not serve {tenant_id!r} any more")
        return session.take()

    async def _serving(self, tenant_id: str) -> ServedTenant:
        """Return the tenant, once it is open; raises NotServedHere, or what opening raised."""
        if self._opening is None and self._closing is None:
            # A client may be here before the word of the loader that sent it.
            try:
                await asyncio.wait_for(self._assigned.wait(), ASSIGNMENT_S)
            except TimeoutError:
                pass
        if self._opening is None or self._tenant_id != tenant_id or self._closing is not None:
            raise NotServedHere(f"{self._name} does not serve {tenant_id!r}")
        tenant = await asyncio.shield(self._opening)
        if tenant.failed is not None and tenant is self._tenant:
            self._stop(tenant)
            tenant = await asyncio.shield(self._opening)
        if self._closing is not None or tenant is not self._tenant:
            raise NotServedHere(f"{self._name} does not serve {tenant_id!r} any more")
        return tenant

    # --- going to sleep

    def _schedule_idle_check(self) -> None:
        self._idle_check = self._clock.call_at(
            self._clock.now_us() + round(_IDLE_CHECK_S * US), self._check_idle
        )

    def _check_idle(self) -> None:
        self._idle_check = None
        if self._closing is not None or self._tenant is None:
            return
        self._drop_old_sessions()
        if self._tenant.failed is not None:
            self._stop(self._tenant)
        elif self._may_sleep(self._tenant):
            self._end()
        else:
            self._schedule_idle_check()

    def _may_sleep(self, tenant: ServedTenant) -> bool:
        now_us = self._clock.now_us()
        if not tenant.is_idle() or any(s.is_awaited() for s in self._sessions.values()):
            self._used_us = now_us
            return False
        wake_us = tenant.next_wake_us()
        return now_us - self._used_us >= self._idle_us and (
            # Sleep that is shorter than falling asleep and waking is not worth it.
            wake_us is None or wake_us - now_us >= self._worthwhile_us()
        )

    def _worthwhile_us(self) -> int:
        """Return the shortest worthwhile sleep: on a busy machine a process takes longer to
        start."""
        costs_us = min(2 * (self._start_us + self._opening_us), round(SLEEP_COSTS_MAX_S * US))
        return max(min(self._idle_us, 5 * US), costs_us)

    def _drop_old_sessions(self) -> None:
        oldest_us = self._clock.now_us() - round(SESSION_KEPT_S * US)
        for session_id, session in list(self._sessions.items()):
            if session.used_us and session.used_us < oldest_us and not session.waiting:
                session.close()
                del self._sessions[session_id]

    def _end(self) -> None:
        if self._closing is None:
            self._move("close")
            self._closing = asyncio.ensure_future(self._go_to_sleep())

    async def _go_to_sleep(self) -> None:
        if self._idle_check is not None:
            self._idle_check.cancel()
        for session in self._sessions.values():
            session.close()
        tenant, tenant_id = self._tenant, self._tenant_id
        try:
            has_slept = self._stopped is None
            await self._close_stopped()
            if tenant is not None and tenant_id is not None:
                has_slept = await self._close_tenant(tenant, tenant_id) and has_slept
                if has_slept and await self._let_go():
                    self._become_blank()
                    self._reports.begin(self._report_blank(tenant_id))
                    return
            await self._notify(self._loader, LoaderApi.released, self._name, tenant_id)
        except BaseException:
            self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        self._move("told")
        self._on_end()

    async def _report_blank(self, tenant_id: str) -> None:
        generation = self._generation
        await self._notify(self._loader, LoaderApi.released, self._name, tenant_id, generation)

    async def _let_go(self) -> bool:
        """Drop what is left of the closed tenant; return whether another may follow."""
        if self._tenants_left <= 1 or self._must_end:
            return False
        calls = [task for session in self._sessions.values() for task in session.tasks]
        if calls and (await asyncio.wait(calls, timeout=CALLS_END_S))[1]:
            return False
        try:
            return await self._on_released() and not self._must_end
        except Exception as error:  # whatever it is: an ended process holds nothing
            _logger.warning("%s ends: it could not be cleared: %r", self._name, error)
            return False

    def _become_blank(self) -> None:
        assert self._tenant_id is not None
        for session_id in self._sessions:
            self._ended_sessions[self._tenant_id, session_id] = None
        self._sessions = {}
        self._tenant_id = self._tenant = self._opening = None
        self._early_code = None
        self._assigned = asyncio.Event()
        self._opening_us = 0
        self._tenants_left -= 1
        self._generation += 1
        self._idle_check = self._closing = None
        self._move("cleared")

    async def _close_tenant(self, tenant: ServedTenant, tenant_id: str) -> bool:
        """Close it, and tell the timer; return whether it sleeps now."""
        try:
            await tenant.close()
        except Exception as error:  # whatever it is: the timer must hear nothing, the loader must
            _logger.warning("tenant %r was not closed cleanly: %r", tenant_id, error)
            return False
        # A tenant that was lost has not slept: it stays listed as open, and whoever owns the log by
        # now, or opens it next, answers for its timers.
        if tenant.failed is not None:
            return False
        due_us = tenant.next_wake_us()
        due_us = self._clock.now_us() if due_us == 0 else due_us
        await self._notify(self._timer, TimerApi.slept, [(tenant_id, tenant.epoch, due_us)])
        return True

    async def _notify(
        self,
        whom: Callable[[], Awaitable[ActorRef]],
        method: Callable[Concatenate[Any, P], Coroutine[Any, Any, None]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Notify an actor, through its restarts, for a while; it finds the fact out by itself
        later."""
        for _ in range(20):
            try:
                await remote(await whom(), method, timeout_s=5.0)(*args, **kwargs)
                return
            except (ActorUnreachable, Unavailable):
                await asyncio.sleep(0.25)
            except WorkflowsError as error:
                _logger.warning("%s was not told of %s: %s", method.__name__, self._name, error)
                return
