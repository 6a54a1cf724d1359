"""Explores schedules: several owners of one log, alive at once, in an order that a seed decides.

Every operation on the store (and on a local disk: every step between two system calls) stops at a
gate; the seed picks who goes on, what fails, who dies, and when the power goes. After each schedule
the log is opened once more and read: what was acknowledged is there once, in its place.

    python tests/support/explorer.py --first 1 --count 1000      prints the seeds that fail, if any
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import random
import selectors
import sys
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from simdisk import Medium, SimDisk, SimStore

from dynamic_workflows.eventlog import manifest
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt, Fenced, Unavailable, WorkflowsError
from dynamic_workflows.eventlog.events import Row, span
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import SegmentInfo
from dynamic_workflows.eventlog.segments import compaction, segment
from dynamic_workflows.eventlog.store.base import Entries, Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.wal.recovery import read_tail

T = TypeVar("T")
STREAM = "tenants/tenant=t"
CONFIG = LogConfig(has_probe=False, auto_seal=False)


class Wrong(AssertionError):
    """A promise was broken."""


# -- time and order ------------------------------------------------------------------------------


class _NoSelector(selectors.BaseSelector):
    def register(self, fileobj: Any, events: int, data: Any = None) -> Any: ...
    def unregister(self, fileobj: Any) -> Any: ...
    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def get_map(self) -> Any:
        return {}


class StepLoop(asyncio.BaseEventLoop):
    """An event loop without a world: no sockets, no threads, and time that moves when told."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoSelector()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def become_idle(self) -> None:
        """Run what is ready, and what becomes ready by that."""
        while self._ready:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0)

    def next_timer(self) -> float | None:
        timers = [t.when() for t in self._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        return min(timers, default=None)


@dataclass
class World:
    """One schedule: who waits at which gate, and the dice."""

    rng: random.Random
    loop: StepLoop
    gates: list[tuple[Process, asyncio.Future[None]]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """Held, so that no task vanishes with the process that would have waited for it."""

    def pass_one(self) -> bool:
        """Let one of those who wait go on; False when nobody living waits."""
        self.gates = [gate for gate in self.gates if not gate[0].is_dead]
        if not self.gates:
            return False
        # Some processes are much slower than others: they wake up in another world.
        weights = [gate[0].speed for gate in self.gates]
        [place] = self.rng.choices(range(len(self.gates)), weights)
        self.gates[place], self.gates[-1] = self.gates[-1], self.gates[place]
        self.gates.pop()[1].set_result(None)
        return True


@dataclass
class Process:
    """An owner's process: it can stop at any gate, and die there."""

    world: World
    fault_rate: float
    speed: float = 1.0
    is_dead: bool = False

    async def gate(self) -> None:
        future: asyncio.Future[None] = self.world.loop.create_future()
        self.world.gates.append((self, future))
        await future

    async def operate(self, work: Callable[[], Awaitable[T]]) -> T:
        """One operation on a store. It may fail, before its effect or after; replies are late."""
        await self.gate()
        dice = self.world.rng.random()
        if dice < self.fault_rate:
            raise Unavailable("refused by the explorer")
        result = await work()
        if dice < 2 * self.fault_rate:
            await self.gate()
            raise Unavailable("reply lost by the explorer")
        if dice > 0.7:
            await self.gate()
        return result


class SteppedStore:
    """An object store as one process sees it."""

    def __init__(self, store: MemoryStore, process: Process) -> None:
        self._store = store
        self._process = process
        self.root = store.root

    async def create(self, key: str, data: bytes) -> None:
        await self._process.operate(lambda: self._store.create(key, data))

    async def put(self, key: str, data: bytes) -> None:
        await self._process.operate(lambda: self._store.put(key, data))

    async def get(self, key: str) -> bytes:
        return await self._process.operate(lambda: self._store.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await self._process.operate(lambda: self._store.get_range(key, start, length))

    async def list(self, prefix: str, *, after: str | None = None) -> Entries:
        return await self._process.operate(lambda: self._store.list(prefix, after=after))

    async def delete(self, key: str) -> None:
        await self._process.operate(lambda: self._store.delete(key))

    def get_blocking(self, key: str) -> bytes:
        return self._store.get_blocking(key)

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        return self._store.get_range_blocking(key, start, length)

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        return self._store.list_blocking(prefix, after=after)

    def local_path(self, key: str) -> None:
        return None

    async def close(self) -> None:
        pass


class SteppedLocalStore(SimStore):
    """A local store as one process sees it."""

    def __init__(self, medium: Medium, process: Process) -> None:
        super().__init__(medium)
        self._process = process
        assert isinstance(self.disk, SimDisk)
        rng = process.world.rng
        self.disk.fails_to_sync = lambda: rng.random() < process.fault_rate

    async def in_thread(self, work: Callable[[], T]) -> T:
        async def effect() -> T:
            return work()

        return await self._process.operate(effect)


class StepRunner:
    """Stands in for the sync thread: pauses between two system calls."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._before: asyncio.Task[None] | None = None

    def submit(self, steps: Generator[None, None, Any], done: Callable[..., None]) -> None:
        before = self._before

        async def run() -> None:
            if before is not None:
                await before
            while True:
                await self._process.gate()
                dice = self._process.world.rng.random()
                try:
                    if dice < self._process.fault_rate / 2:
                        raise OSError(errno.EIO, "a call failed by the explorer")
                    next(steps)
                    if dice > 1 - self._process.fault_rate / 2:
                        raise OSError(errno.ENOSPC, "a call failed late by the explorer")
                except StopIteration as stop:
                    await self._process.gate()
                    done(stop.value, None)
                    return
                except Exception as error:
                    steps.close()
                    done(None, error)
                    return

        self._before = self._process.world.loop.create_task(run())
        self._process.world.tasks.append(self._before)

    def close(self) -> None:
        pass


# -- segments that cost nothing -------------------------------------------------------------------


async def _seal_cheaply(
    store: Store, manifest: Any, rows: Any, *, seq_max: int, ids: Any, now_us: int, config: Any
) -> compaction.SegmentSwap:
    """Segments in msgpack: schedules are about order, and Parquet would be most of their time."""
    key = f"{STREAM}/events/{ids.token()}.parquet"
    data = msgspec.msgpack.encode(list(rows))
    await store.create(key, data)
    first = manifest.sealed_seq + 1
    count = seq_max - first + 1
    info = SegmentInfo(
        key=key, rows=count, bytes=len(data), sha256="", seq_min=first, seq_max=seq_max
    )
    return compaction.SegmentSwap(added=(info,), sealed_seq=seq_max)


async def _read_cheaply(store: Store, segments: Any, *, after: int = 0) -> Any:
    for info in segments:
        yield msgspec.msgpack.decode(await store.get(info.key), type=list[Row])


def install() -> None:
    """Make sealing cheap and removal early, in this process."""
    compaction.seal = _seal_cheaply  # type: ignore[assignment]
    manifest.KEPT = 1
    segment.read_rows = _read_cheaply  # type: ignore[assignment]


# -- owners ---------------------------------------------------------------------------------------


@dataclass
class Promise:
    """An append, and what became of it."""

    name: str
    row: Row
    owner: int
    started: int
    is_acked: bool = False
    is_durable: bool = True


@dataclass
class Story:
    """What happened in one schedule, in the order it happened."""

    world: World
    clock: VirtualClock
    promises: list[Promise] = field(default_factory=list)
    opened: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, time) of each open that returned."""
    ticks: int = 0
    wrong: list[str] = field(default_factory=list)

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks


async def _own(story: Story, number: int, store: Any, process: Process) -> None:
    """One owner: opens the log, appends, perhaps seals, perhaps dies; any error ends it."""
    rng = story.world.rng
    runner = StepRunner(process)
    seal_rate = rng.choice([0.1, 0.6])
    for _ in range(rng.randrange(4 * number + 1)):
        await process.gate()
    try:
        mine = await EventLog.open(
            store,
            STREAM,
            tenant_id="t",
            clock=story.clock,
            ids=SeededIds(rng.getrandbits(60)),
            config=CONFIG,
            runner=runner,
        )
        story.opened.append((mine.epoch, story.tick()))
        for turn in range(rng.randrange(1, 5)):
            appends = [
                _append(story, mine, f"{number}.{turn}.{n}") for n in range(rng.randrange(1, 3))
            ]
            if rng.random() < seal_rate:
                appends.append(mine.seal())
            if rng.random() < 0.07:
                process.is_dead = True
            if rng.random() < 0.1:
                process.speed = 0.01
            await asyncio.gather(*appends)
        if rng.random() < 0.3:
            await mine.close(seal=rng.random() < 0.5)
    except (Fenced, Unavailable):
        pass
    except Corrupt as error:
        story.wrong.append(f"owner {number} was told of damage: {error.message}")


async def _append(story: Story, mine: EventLog, name: str) -> None:
    started = story.tick()
    name = f"{name} at {started}"
    is_folded = story.world.rng.random() < 0.3
    row = Row(
        type="step_completed" if is_folded else "event_received",
        workflow="W",
        instance_id="i",
        attempt=1 if is_folded else 0,
        payload=name.encode(),
    )
    durable = story.world.rng.random() < 0.5
    promise = Promise(name, row, mine.epoch, started, is_durable=durable)
    story.promises.append(promise)
    await mine.append([row], durable=durable)
    promise.is_acked = True
    # Rows are objects of the log once appended: what the log has is compared with this copy.
    promise.row = msgspec.structs.replace(row)


# -- one schedule ---------------------------------------------------------------------------------


def explore(seed: int) -> list[str]:
    """Run the schedule of a seed; what went wrong, if anything."""
    rng = random.Random(seed)
    loop = StepLoop()
    world = World(rng, loop)
    try:
        return loop.run_until_complete(_schedule(world))
    finally:
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


async def _schedule(world: World) -> list[str]:
    rng = world.rng
    story = Story(world, VirtualClock())
    is_local = rng.random() < 0.5
    medium, memory = Medium(), MemoryStore("memory://explored")
    fault_rate = rng.choice([0.0, 0.0, 0.02, 0.08])

    def store_for(process: Process) -> Any:
        if is_local:
            return SteppedLocalStore(medium, process)
        return SteppedStore(memory, process)

    await _live_through(world, story, store_for, fault_rate, owners=rng.randrange(1, 4))
    if is_local and rng.random() < 0.4:
        medium.lose_power(rng)
        _forget_unsynced(story)
        if rng.random() < 0.5:
            await _live_through(world, story, store_for, fault_rate, owners=rng.randrange(1, 3))
    await _check(story, SimStore(medium) if is_local else memory)
    return story.wrong


async def _live_through(
    world: World,
    story: Story,
    store_for: Callable[[Process], Any],
    fault_rate: float,
    *,
    owners: int,
) -> None:
    loop = world.loop
    tasks = []
    for number in range(owners):
        process = Process(world, fault_rate, world.rng.choice([1.0, 1.0, 0.1, 0.01]))
        tasks.append(
            loop.create_task(_own(story, len(story.opened) + number, store_for(process), process))
        )
    while not all(task.done() for task in tasks):
        await loop.become_idle()
        if world.pass_one():
            continue
        when = loop.next_timer()
        if when is None or when > loop.now + 60:
            break  # who has not finished is dead
        loop.now = when
        await asyncio.sleep(0)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            story.wrong.append(f"an owner failed: {error!r}")
        task.cancel()
    world.gates.clear()
    for task in asyncio.all_tasks(loop) - {asyncio.current_task(loop)}:
        task.cancel()
    await asyncio.sleep(0)


def _forget_unsynced(story: Story) -> None:
    """A power cut may take what was acknowledged as written only, and nothing else."""
    for promise in story.promises:
        if not promise.is_durable:
            promise.is_acked = False


async def _check(story: Story, store: Any) -> None:
    """Open the log once more and compare it with what was promised."""
    wrong = story.wrong
    loop = story.world.loop
    process = Process(story.world, 0.0)
    finish = loop.create_task(_read_all(story, store, StepRunner(process)))
    while not finish.done():
        await loop.become_idle()
        if not story.world.pass_one():
            when = loop.next_timer()
            if when is None:
                break
            loop.now = when
            await asyncio.sleep(0)
    if not finish.done():
        wrong.append("the last open never ended")
        return
    try:
        rows, last_seq = finish.result()
    except WorkflowsError as error:
        wrong.append(f"the last open was refused: {error!r}")
        return
    expected = 1
    for row in rows:
        if row.seq != expected:
            wrong.append(f"row {row.seq} where {expected} was due")
            break
        expected += span(row)
    if expected != last_seq + 1:
        wrong.append(f"the log ends at {expected - 1}, not at {last_seq}")
    names = [bytes(row.payload or b"").decode() for row in rows]
    if len(set(names)) != len(names):
        wrong.append("a row is there twice")
    there = dict(zip(names, rows, strict=True))
    for promise in story.promises:
        found = there.get(promise.name)
        if promise.is_acked and (found is None or found != promise.row):
            wrong.append(f"{promise.name} was acknowledged as {promise.row}, and found {found}")
        later = [epoch for epoch, time in story.opened if time < promise.started]
        if promise.is_acked and any(epoch > promise.owner for epoch in later):
            wrong.append(f"{promise.name} of epoch {promise.owner} was taken after {max(later)}")


async def _read_all(story: Story, store: Any, runner: StepRunner) -> tuple[list[Row], int]:
    seen = read_tail(store, STREAM)
    last = await EventLog.open(
        store,
        STREAM,
        tenant_id="t",
        clock=story.clock,
        ids=SeededIds(story.world.rng.getrandbits(60)),
        config=CONFIG,
        runner=runner,
    )
    if seen is not None and seen.last_seq != last.last_seq:
        story.wrong.append(f"a reader saw {seen.last_seq}, the owner {last.last_seq}")
    rows = [row async for batch in last.rows() for row in batch]
    await last.append([Row(type="event_received", workflow="W", instance_id="end")])
    return rows, last.last_seq - 1


def main() -> None:
    """Explore a range of seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--wrong-max", type=int, default=5)
    options = parser.parse_args()
    install()
    failures: dict[int, list[str]] = {}
    for seed in range(options.first, options.first + options.count):
        wrong = explore(seed)
        if wrong:
            failures[seed] = wrong
            if len(failures) >= options.wrong_max:
                break
    print(json.dumps(failures))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
