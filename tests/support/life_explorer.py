"""Explores the life of one tenant: the real timer, loader and slots, over a network of choices.

Every message, and every answer to one, waits at a gate until it is let through, and so does every
write to a log. A schedule says which of those that wait comes next, whether time passes instead,
what is lost, what arrives twice, who dies, and when a client calls. What is not said in a schedule
goes in order, without faults; so a schedule is a few exceptions, and all schedules of so many
exceptions can be tried, one after the other, each from the start.

After each step the promises are compared with what is so; at the end the tenant has done what it
had to do, in bounded time after the last fault, or the schedule is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any

from explorer import StepLoop

from dynamic_workflows.actors.placement.loader import Loader
from dynamic_workflows.actors.placement.worker_process import WorkerProcess
from dynamic_workflows.actors.placement.worker_state import WorkerState
from dynamic_workflows.actors.rpc.actor_ref import ActorRef, ActorUnreachable
from dynamic_workflows.actors.rpc.serving import NotServedHere
from dynamic_workflows.actors.timers.timer_index import TimerIndex
from dynamic_workflows.actors.timers.wake_service import WakeService
from dynamic_workflows.eventlog.clock import US
from dynamic_workflows.eventlog.errors import Fenced, PlatformClosed, WorkflowsError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.protocol.calls import GetStatus, TenantCall, pack_call

TENANT = "acme"
OTHER = "other"
"""A neighbour, in worlds that have one: it takes naps of its own."""
START_US = 1_800_000_000 * US
IDLE_S = 1.0
CLOSING_S = 2.5
"""Longer than the shortest sleep that a tenant falls asleep for."""
NAP_S = 2.2
LATE_S = 6.0
"""How much later than others a message may come: nobody waits for its answer by then."""
BACK_S = 30
"""By how much the clock is set back; forward it is an hour."""
END_S = 45.0
"""By then a tenant has done everything, whatever went wrong at first."""


class Process:
    """Something that can die. What it has sent is under way all the same."""

    def __init__(self, loop: StepLoop, name: str) -> None:
        self.name = name
        self.target: Any = None
        self.is_dead = False
        self.died: asyncio.Future[None] = loop.create_future()

    def die(self) -> None:
        self.is_dead = True
        if not self.died.done():
            self.died.set_result(None)


class ProcessClock:
    """The clock of the world as a process reads it: its timers end with it."""

    def __init__(self, world: LifeWorld, process: Process) -> None:
        self._world, self._process = world, process

    def now_us(self) -> int:
        return self._world.now_us()

    def call_at(self, due_us: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        def fire() -> None:
            if not self._process.is_dead:
                callback()

        rest_s = max(0.0, (due_us - self.now_us()) / US)
        return self._world.loop.call_later(rest_s, fire)


class Gate:
    """A message, an answer or a write that is under way."""

    def __init__(self, label: str, future: asyncio.Future[str], *, is_message: bool) -> None:
        self.label, self.future, self.is_message = label, future, is_message


class RowsLog:
    """The log of the timer or the loader: what was written outlives its owners."""

    def __init__(self, world: LifeWorld, process: Process, rows: list[Row]) -> None:
        self.store: Store = MemoryStore()
        self.stream = "log"
        self.failed: BaseException | None = None
        self._world, self._process, self._rows = world, process, rows

    def append(self, rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._append(list(rows), durable))

    async def _append(self, rows: list[Row], durable: bool) -> None:
        if durable:
            await self._world.gate(f"{self._process.name} writes", is_message=False)
        if self._process.is_dead:
            await self._world.never()
        for row in rows:
            row.seq = len(self._rows) + 1
            self._rows.append(row)

    async def rows(self, *, after: int = 0) -> AsyncIterator[list[Row]]:
        yield self._rows[after:]


class TenantLog:
    """What the tenant's log holds: who owns it, and the naps that are still to be taken."""

    def __init__(self, naps: int, start_us: int) -> None:
        self.epoch = 0
        self.naps = naps
        self.due_us: int | None = None
        self.next_start_us = start_us


class NappingTenant:
    """A tenant in memory that does nothing but nap."""

    def __init__(self, world: LifeWorld, process: Process, tenant_id: str, epoch: int) -> None:
        self._world, self._process, self.epoch = world, process, epoch
        self.tenant_id, self._log = tenant_id, world.logs[tenant_id]
        self._clock = ProcessClock(world, process)
        self.failed: WorkflowsError | None = None
        self._is_closed = False
        self.go_on()

    def go_on(self) -> None:
        log, now_us = self._log, self._clock.now_us()
        if self._is_closed or self._process.is_dead:
            return
        if log.epoch != self.epoch:
            self.failed = Fenced("another owner")
            return
        if log.due_us is not None and log.due_us <= now_us:
            log.naps -= 1
            log.due_us = None
        if log.due_us is None and log.naps:
            log.due_us = now_us + round(NAP_S * US)
        if log.due_us is not None:
            self._clock.call_at(log.due_us, self.go_on)

    async def call(self, call: TenantCall[Any]) -> Any:
        if self._is_closed:
            raise PlatformClosed("closed")
        if self._log.epoch != self.epoch:
            self.failed = Fenced("another owner")
            raise self.failed
        return self.tenant_id

    def is_idle(self) -> bool:
        return True

    def next_wake_us(self) -> int | None:
        return self._log.due_us

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.sleep(CLOSING_S)
        await self._world.gate("close", is_message=False)
        if self._log.epoch != self.epoch:
            self.failed = self.failed or Fenced("another owner")


class Line:
    """A peer as one process reaches it."""

    def __init__(self, world: LifeWorld, source: Process, name: str) -> None:
        self.name = name
        self._world, self._source = world, source

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        world, source = self._world, self._source
        if source.is_dead:
            await world.never()
        sent = asyncio.ensure_future(self._send(op, args, timeout_s is not None))
        done, _ = await asyncio.wait({sent}, timeout=timeout_s)
        if source.is_dead:
            await world.never()
        if not done:
            raise ActorUnreachable(f"{self.name} did not answer {op}")
        return sent.result()

    async def _send(self, op: str, args: tuple[Any, ...], has_timeout: bool) -> Any:
        world = self._world
        fate = await world.gate(f"{op} to {self.name}", is_message=True)
        if fate == "lost":
            if has_timeout:
                await world.never()
            raise ActorUnreachable(f"{op} was lost")
        if fate == "double":
            again = asyncio.ensure_future(self._send_again(op, args))
            again.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await self._serve(op, args, has_timeout)

    async def _send_again(self, op: str, args: tuple[Any, ...]) -> None:
        await self._world.gate(f"{op} to {self.name} once more", is_message=False)
        await self._serve(op, args, False)

    async def _serve(self, op: str, args: tuple[Any, ...], has_timeout: bool) -> Any:
        process = self._world.processes.get(self.name)
        if process is None or process.is_dead:
            raise ActorUnreachable(f"{self.name} is dead")
        served = asyncio.ensure_future(getattr(process.target, op)(*args))
        await asyncio.wait({served, process.died}, return_when=asyncio.FIRST_COMPLETED)
        if process.is_dead:
            served.add_done_callback(lambda task: task.cancelled() or task.exception())
            raise ActorUnreachable(f"{self.name} died")
        if await self._world.gate(f"answer to {op}", is_message=True) == "lost":
            if has_timeout:
                await self._world.never()
            raise ActorUnreachable(f"the answer to {op} was lost")
        return served.result()


class LifeWorld:
    """One schedule: everything that a cluster holds for one tenant."""

    def __init__(
        self,
        loop: StepLoop,
        *,
        naps: int = 2,
        pool_size: int = 0,
        tenants_max: int = 1,
        has_other: bool = False,
        residents_max: int = 10,
    ) -> None:
        """`tenants_max`: the tenants that a slot serves, one after the other."""
        self.loop = loop
        self.pool_size = pool_size
        self.tenants_max, self.residents_max = tenants_max, residents_max
        tenants = [TENANT, OTHER] if has_other else [TENANT]
        self.logs = {tenant_id: TenantLog(naps, START_US) for tenant_id in tenants}
        self.log = self.logs[TENANT]
        self.jump_us = 0
        self.back_s = 0
        """Seconds by which the clock was set back: what is due is due so much later."""
        self.gates: list[Gate] = []
        self.processes: dict[str, Process] = {}
        self.timer_rows: list[Row] = []
        self.unanswered = 0
        """Calls of clients that are under way."""
        self.has_called = False
        self._loaders = 0
        self._sessions = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._old: list[Any] = []
        self.wrong: list[str] = []
        self._index = TimerIndex(RowsLog(self, Process(loop, "reader"), []))
        self._rows_read = 0

    def now_us(self) -> int:
        return START_US + self.jump_us + round(self.loop.now * US)

    async def gate(self, label: str, *, is_message: bool) -> str:
        future: asyncio.Future[str] = self.loop.create_future()
        self.gates.append(Gate(label, future, is_message=is_message))
        return await future

    async def never(self) -> None:
        await self.loop.create_future()

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.wrong.append(f"a task failed: {task.exception()!r}")

    # --- processes

    def _process(self, name: str) -> Process:
        old = self.processes.get(name)
        if old is not None:
            old.die()
            self._old.append(old)
        process = self.processes[name] = Process(self.loop, name)
        return process

    def _finder(self, source: Process, name: str) -> Callable[[], Coroutine[Any, Any, ActorRef]]:
        async def find() -> ActorRef:
            if source.is_dead:
                await self.never()
            return Line(self, source, name)

        return find

    def start_timer(self) -> None:
        process = self._process("timer")
        timer = WakeService(
            log=RowsLog(self, process, self.timer_rows),
            clock=ProcessClock(self, process),
            loader=self._finder(process, "loader"),
        )
        process.target = timer
        self.begin(timer.open())

    def start_loader(self) -> None:
        process = self._process("loader")
        self._loaders += 1
        loader = Loader(
            launcher=Launching(self, process),
            log=RowsLog(self, process, []),
            clock=ProcessClock(self, process),
            ids=SeededIds(self._loaders),  # each has names of its own
            pool_size=self.pool_size,
            residents_max=self.residents_max,
        )
        process.target = loader
        self.begin(loader.open())

    def start_slot(self, name: str) -> None:
        process = self._process(name)
        clock = ProcessClock(self, process)

        async def open_tenant(
            tenant_id: str, is_wanted: bool, claims: Callable[[int], None], above: int
        ) -> NappingTenant:
            log = self.logs[tenant_id]
            while True:
                epoch = max(log.epoch, above) + 1
                claims(epoch)
                await self.gate("take over", is_message=False)
                if process.is_dead:
                    await self.never()
                if epoch > log.epoch:
                    log.epoch = epoch
                    return NappingTenant(self, process, tenant_id, epoch)

        process.target = WorkerProcess(
            name,
            open_tenant=open_tenant,
            loader=self._finder(process, "loader"),
            timer=self._finder(process, "timer"),
            clock=clock,
            idle_s=IDLE_S,
            on_end=lambda: self.crash(name),
            tenants_max=self.tenants_max,
        )

    def crash(self, name: str) -> None:
        """The process dies; Ray starts it again, unless it was ended for good."""
        process = self.processes.get(name)
        if process is None or process.is_dead:
            return
        process.die()
        self.begin(self._restart(name, process))

    async def _restart(self, name: str, dead: Process) -> None:
        await self.gate(f"{name} starts again", is_message=False)
        if self.processes.get(name) is not dead:
            return  # it was ended for good meanwhile
        if name == "timer":
            self.start_timer()
        elif name == "loader":
            self.start_loader()
        else:
            self.start_slot(name)
            line = Line(self, self.processes[name], "loader")
            for _ in range(20):
                try:
                    await line.call("worker_restarted", name, timeout_s=5.0)
                    return
                except ActorUnreachable:
                    await asyncio.sleep(0.2)

    # --- a client

    async def _call(self, tenant_id: str = TENANT) -> None:
        """What a driver does for one call, until it has an answer."""
        self.unanswered += 1
        client, gone = Process(self.loop, "client"), None
        loader = Line(self, client, "loader")
        while True:
            try:
                peer = await loader.call("resolve", tenant_id, gone, timeout_s=30.0)
                line = Line(self, client, peer.name)
                calls = [(1, pack_call(GetStatus(id="i")))]
                self._sessions += 1  # each try is a connection of its own
                args: tuple[Any, ...] = (tenant_id, f"s{self._sessions}", calls, [], 0.0)
                answers = await line.call("exchange", *args, timeout_s=30.0)
                served_by = [answer for _, is_good, answer in answers if is_good]
                if served_by:
                    if served_by != [tenant_id]:
                        self.wrong.append(f"a call for {tenant_id} was answered by {served_by}")
                    self.unanswered -= 1
                    return
                gone = peer.name
            except NotServedHere:
                gone = peer.name
            except (ActorUnreachable, WorkflowsError):
                pass
            await asyncio.sleep(0.1)

    def first_call(self) -> None:
        """Somebody makes each tenant's first instance."""
        for tenant_id in self.logs:
            self.begin(self._call(tenant_id))

    def client_calls(self) -> None:
        """A second client calls; schedules say when."""
        self.has_called = True
        self.begin(self._call())

    # --- what is so, as far as it decides what comes

    def state(self) -> Hashable:
        """Equal for schedules that go on in the same way."""
        now_us = self.now_us()
        timers = sorted(
            (round(handle.when() - self.loop.now, 3), getattr(handle._callback, "__qualname__", ""))
            for handle in self.loop._scheduled  # type: ignore[attr-defined]
            if not handle.cancelled()
        )
        return (
            tuple(gate.label.replace(" once more", "") for gate in self.gates),
            tuple(timers),
            tuple(self._process_state(process) for process in self.processes.values()),
            tuple(
                (log.naps, None if log.due_us is None else log.due_us - now_us)
                for log in self.logs.values()
            ),
            self.has_called,
            self.unanswered,
        )

    def _process_state(self, process: Process) -> Hashable:
        target = process.target
        if process.is_dead:
            return (process.name[:5], "dead")
        if isinstance(target, WorkerProcess):
            resident = target._tenant
            is_owner = resident is not None and self._is_owner(resident)
            tenant_id = target._tenant_id
            return ("slot", target._state, is_owner, tenant_id, target._generation)
        if isinstance(target, WakeService):
            return (
                tuple(self._entry_state(target, tenant_id) for tenant_id in self.logs),
                len(target._in_flight),
            )
        if isinstance(target, Loader):
            return (
                tuple(self._place_state(target, tenant_id) for tenant_id in self.logs),
                len(target._waking),
                len(target._pool.workers),
            )
        return None

    def _entry_state(self, timer: WakeService, tenant_id: str) -> Hashable:
        entry, tried = timer._index.entry(tenant_id), timer._schedule.get(tenant_id)
        now_us = self.now_us()
        return (
            entry and (entry.is_open, entry.epoch - self.logs[tenant_id].epoch),
            entry and (entry.due_us if entry.is_open else (entry.due_us or 0) - now_us),
            tried and (tried.count, tried.next_us - now_us, tried.entry == entry),
        )

    def _place_state(self, loader: Loader, tenant_id: str) -> Hashable:
        place = loader._placements.get(tenant_id)
        return (
            place is not None,
            place and (place.home is not None, place.worker is not None, place.is_wanted),
            place and (place.assigned is not None and place.assigned.done(), place.generation),
        )

    def _is_owner(self, resident: Any) -> bool:
        return bool(resident.epoch == self.logs[resident.tenant_id].epoch)

    # --- what holds at every moment, and at the end

    def check(self) -> None:
        self._read_rows()
        for process in self.processes.values():
            slot = process.target
            if (
                process.is_dead
                or not isinstance(slot, WorkerProcess)
                or slot._state is not WorkerState.OPEN
            ):
                continue
            resident: Any = slot._tenant
            if resident is None:
                continue
            if resident.tenant_id != slot._tenant_id:
                self.wrong.append(f"{process.name} serves {resident.tenant_id} under another name")
            entry = self._index.get(resident.tenant_id)
            if self._is_owner(resident) and entry != -1:
                self.wrong.append(f"{process.name} serves, and the timer holds {entry}")
        loader = self.processes["loader"].target
        if isinstance(loader, Loader):
            self._check_places(loader)

    def _check_places(self, loader: Loader) -> None:
        """No process is in two places, or in a place and in the pool."""
        names = [worker.name for worker in loader._pool.workers]
        places = loader._placements.values()
        names += [place.worker.name for place in places if place.worker is not None]
        if len(names) != len(set(names)):
            self.wrong.append(f"a slot is in two places: {sorted(names)}")

    def _read_rows(self) -> None:
        for row in self.timer_rows[self._rows_read :]:
            self._index._apply(row)
        self._rows_read = len(self.timer_rows)

    @property
    def is_done(self) -> bool:
        return not any(log.naps for log in self.logs.values()) and not self.unanswered


class Launching:
    """The world as the loader's launcher."""

    def __init__(self, world: LifeWorld, process: Process) -> None:
        self._world, self._process = world, process

    async def start(self, name: str, *, is_spare: bool) -> ActorRef:
        await self._world.gate("start a slot", is_message=False)
        if self._process.is_dead:
            await self._world.never()
        self._world.start_slot(name)
        return Line(self._world, self._process, name)

    async def names(self) -> list[str]:
        return [name for name in self._world.processes if name.startswith("worker-")]

    async def find(self, name: str) -> ActorRef | None:
        known = name in self._world.processes
        return Line(self._world, self._process, name) if known else None

    async def kill(self, name: str) -> None:
        if self._process.is_dead:
            await self._world.never()
        process = self._world.processes.pop(name, None)
        if process is not None:
            process.die()


# -- schedules -----------------------------------------------------------------------------------

Exception_ = tuple[int, str]
"""(number of the step, what happens there instead of what is usual)"""


class Story:
    """One run: what could have happened at each step, and what was wrong."""

    def __init__(self) -> None:
        self.options: list[list[str]] = []
        self.taken: list[str] = []
        self.wrong: list[str] = []
        self.states: list[Hashable] = []
        """What was so before each step, as far as it decides what comes after."""
        self.rest_s = 0.0
        """From the last exception to the end, on the clock of the world."""


def run(
    exceptions: Sequence[Exception_],
    *,
    has_client: bool = True,
    has_states: bool = False,
    **world_of: Any,
) -> Story:
    """Play one schedule to its end, or to the first thing that is wrong.

    `world_of`: as `LifeWorld` takes it.
    """
    loop = StepLoop()
    loop.set_exception_handler(lambda *_: None)
    asyncio.set_event_loop(loop)
    story = Story()
    try:
        world = LifeWorld(loop, **world_of)
        loop.run_until_complete(
            _run(world, story, dict(exceptions), has_client=has_client, has_states=has_states)
        )
    finally:
        for _ in range(5):  # what ends may begin something
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(loop.become_idle())
        asyncio.set_event_loop(None)
        loop.close()
    return story


async def _run(
    world: LifeWorld,
    story: Story,
    exceptions: dict[int, str],
    *,
    has_client: bool,
    has_states: bool,
) -> None:
    loop = world.loop
    world.start_timer()
    world.start_loader()
    await loop.become_idle()
    world.first_call()
    await loop.become_idle()
    last_fault_s = 0.0
    while not world.is_done:
        options = _options(world, has_client=has_client)
        step = len(story.taken)
        choice = exceptions.get(step, "")
        if choice not in options:
            choice = "let 0" if world.gates else "time"
        elif choice != "time":
            last_fault_s = loop.now
        story.options.append(options)
        if has_states:
            story.states.append(world.state())
        story.taken.append(choice)
        _do(world, choice)
        await asyncio.sleep(0)
        await loop.become_idle()
        world.check()
        story.wrong += world.wrong
        if story.wrong:
            return
        if loop.now > last_fault_s + END_S + world.back_s:
            naps = sum(log.naps for log in world.logs.values())
            story.wrong.append(
                f"{naps} naps are left at {loop.now:.0f} s, "
                f"and {world.unanswered} calls without an answer"
            )
            return
    story.rest_s = loop.now - last_fault_s


def _options(world: LifeWorld, *, has_client: bool) -> list[str]:
    options = [f"let {k}" for k in range(1, len(world.gates))]
    if world.gates and world.loop.next_timer() is not None:
        options.append("time")
    for k, gate in enumerate(world.gates):
        if gate.is_message:
            options += [f"lost {k}", f"double {k}", f"late {k}"]
    options += [f"kill {name}" for name, p in world.processes.items() if not p.is_dead]
    if has_client and not world.has_called:
        options.append("client")
    options += ["forward", "back"]
    return options


def _do(world: LifeWorld, choice: str) -> None:
    kind, _, what = choice.partition(" ")
    if kind in ("let", "lost", "double"):
        gate = world.gates.pop(int(what))
        gate.future.set_result(kind)
    elif kind == "late":
        world.loop.call_later(LATE_S, world.gates.append, world.gates.pop(int(what)))
    elif kind == "time":
        when = world.loop.next_timer()
        assert when is not None, "nothing is under way, and nothing will ever be: a silent stop"
        world.loop.now = when
    elif kind == "kill":
        world.crash(what)
    elif kind == "client":
        world.client_calls()
    elif kind == "forward":
        world.jump_us += 3_600 * US
    else:
        world.jump_us -= BACK_S * US
        world.back_s += BACK_S


def explore(
    depth: int, *, window: int = 1_000, **scenario: Any
) -> Iterator[tuple[tuple[Exception_, ...], Story]]:
    """Every schedule of at most `depth` exceptions, each with how it went.

    `window`: an exception follows the one before it within so many steps.
    Where a schedule comes to a state from which one with as many exceptions left has gone on
    before, it is not followed again.
    """
    todo: list[tuple[Exception_, ...]] = [()]
    seen: dict[Hashable, int] = {}
    while todo:
        exceptions = todo.pop()
        left = depth - len(exceptions)
        story = run(exceptions, has_states=left > 0 and depth > 1, **scenario)
        yield exceptions, story
        if not left:
            continue
        first = exceptions[-1][0] + 1 if exceptions else 0
        last = first + window if exceptions else len(story.options)
        for step in range(first, min(last, len(story.options))):
            if story.states:
                if seen.get(story.states[step], 0) >= left:
                    break
                seen[story.states[step]] = left
            todo += [(*exceptions, (step, what)) for what in story.options[step]]
