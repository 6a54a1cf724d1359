"""Whatever asyncio is used for around steps, a replay goes the way that the run went."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import msgspec
from guest_world import World, flow
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_workflows.loaders.protocol import messages

EXAMPLES = int(os.environ.get("ASYNCIO_EXAMPLES", "25"))

# A program is a tree; `go` runs a node of it. What every node came to is written into the trace,
# and a `note` holds the trace of the time when it was written against the one of a replay.
INTERPRETER = """
trace = []
numbers = itertools.count()

def tell(*what):
    trace.append("/".join(map(str, what)))

async def leaf(kind, name, *more):
    if kind == "do":
        ms, failures = more
        async def work(ctx):
            if ms:
                await asyncio.sleep(ms / 1000)
            if ctx.attempt <= failures:
                raise ValueError(f"attempt {ctx.attempt}")
            return random.random()
        return await step.do(name, work, config={"retries": {"limit": 1, "delay": 0}})
    if kind == "plain":
        return await step.do(name, lambda: random.random())
    if kind == "sleep":
        return await step.sleep(name, "1 day")
    if kind == "event":
        return (await step.wait_for_event(name, name)).payload
    if kind == "pause":
        return await asyncio.sleep(more[0] / 1000)
    if kind == "turns":
        for _ in range(more[0]):
            await asyncio.sleep(0)
    if kind == "note":
        now = list(trace)
        was = await step.do("note", lambda: now)
        if was != now:
            print("DIVERGED", was, now)
            raise SystemError("diverged")

def made(nodes):
    return [asyncio.create_task(go(node)) for node in nodes]

def told(tasks):
    for task in tasks:
        if task.done():
            how = "cancelled" if task.cancelled() else repr(task.exception() or task.result())
            tell(task.get_name(), how)

async def go(node):
    kind, *rest = node
    try:
        value = await many(kind, *rest) if isinstance(rest[0], list) else await leaf(kind, *rest)
    except BaseException as error:
        tell(kind, type(error).__name__)
        if type(error) is BaseExceptionGroup:
            raise asyncio.CancelledError() from None
        raise
    tell(kind, value)
    return value

async def quiet(node):
    try:
        return await go(node)
    except (ValueError, TimeoutError, ExceptionGroup) as error:
        return type(error).__name__

async def many(kind, nodes, ms=0, flag=False):
    if kind == "seq":
        return [await quiet(node) for node in nodes]
    if kind == "gather":
        return await asyncio.gather(*map(go, nodes), return_exceptions=flag)
    if kind == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(go(node)) for node in nodes]
        return [task.result() for task in tasks]
    if kind in ("FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"):
        tasks = made(nodes)
        limit = ms / 1000 if ms else None
        done, pending = await asyncio.wait(
            set(tasks) if flag else tasks, return_when=kind, timeout=limit
        )
        told(done)
        for task in pending:
            tell("cancel", task.get_name())
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        told(pending)
        return len(done)
    if kind == "as_completed":
        got = []
        for one in asyncio.as_completed([go(node) for node in nodes], timeout=ms / 1000 or None):
            try:
                got.append(await one)
            except (ValueError, ExceptionGroup) as error:
                got.append(type(error).__name__)
            if flag:
                await leaf("note", "")
        return got
    if kind == "wait_for":
        return await asyncio.wait_for(many("gather", nodes), ms / 1000)
    if kind == "timeout":
        async with asyncio.timeout(ms / 1000):
            return await many("seq", nodes)
    if kind == "timeout_at":
        until = asyncio.get_running_loop().time() + ms / 1000
        for node in nodes:
            async with asyncio.timeout_at(until):
                await quiet(node)
        return "in time"
    if kind == "shield":
        task = asyncio.create_task(quiet(nodes[0]))
        try:
            await asyncio.wait_for(asyncio.shield(task), ms / 1000)
        except TimeoutError:
            tell("shielded")
        return await task
    if kind == "cancel":
        task = asyncio.create_task(go(nodes[0]))
        for node in nodes[1:]:
            await quiet(node)
        tell("asked", task.cancel())
        return repr((await asyncio.gather(task, return_exceptions=True))[0])
    if kind == "event_of":
        event, tasks = asyncio.Event(), []
        async def waiter(node):
            await event.wait()
            return await quiet(node)
        tasks = [asyncio.create_task(waiter(node)) for node in nodes[1:]]
        await quiet(nodes[0])
        event.set()
        return await asyncio.gather(*tasks)
    if kind == "queue":
        queue = asyncio.Queue(1)
        async def producer(node):
            await queue.put(await quiet(node))
        tasks = [asyncio.create_task(producer(node)) for node in nodes]
        got = [await queue.get() for _ in nodes]
        await asyncio.gather(*tasks)
        return got
    if kind == "locked":
        lock, semaphore = asyncio.Lock(), asyncio.Semaphore(2)
        async def one(node):
            async with semaphore:
                value = await quiet(node)
                async with lock:
                    await leaf("turns", "", 2)
                    tell("locked", value)
        await asyncio.gather(*map(one, nodes))
        return sorted(task.get_name() for task in asyncio.all_tasks())
    if kind == "condition":
        condition, ready = asyncio.Condition(), []
        async def one(node):
            value = await quiet(node)
            async with condition:
                ready.append(value)
                condition.notify_all()
        tasks = made([])
        tasks = [asyncio.create_task(one(node)) for node in nodes]
        async with condition:
            await condition.wait_for(lambda: len(ready) >= len(nodes))
        return ready
    if kind == "barrier":
        barrier = asyncio.Barrier(len(nodes))
        async def one(node):
            await quiet(node)
            return await barrier.wait()
        return await asyncio.gather(*map(one, nodes))
    if kind == "callbacks":
        order, loop = [], asyncio.get_running_loop()
        tasks = made(nodes)
        for n, task in enumerate(tasks):
            task.add_done_callback(lambda _, n=n: order.append(n))
        handle = loop.call_later(ms / 1000, order.append, "timer")
        loop.call_soon(order.append, "soon")
        await asyncio.wait(tasks)
        handle.cancel()
        return order

try:
    end = await go(event.payload)
except BaseException as error:
    if isinstance(error, SystemError):
        raise
    end = type(error).__name__
    if type(error) is asyncio.CancelledError and asyncio.current_task().cancelling():
        raise
await leaf("note", "")
return [end, trace]
"""
CODE = flow(INTERPRETER, "import itertools, random")

NAMES = st.sampled_from(["a", "b"])
LEAVES = st.one_of(
    st.tuples(st.just("do"), NAMES, st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("plain"), NAMES),
    st.tuples(st.sampled_from(["sleep", "event"]), NAMES),
    st.tuples(st.just("pause"), st.just(""), st.integers(0, 3)),
    st.tuples(st.just("turns"), st.just(""), st.integers(1, 12)),
    st.tuples(st.just("note"), st.just("")),
)
KINDS = [
    "seq", "gather", "group", "FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED",
    "as_completed", "wait_for", "timeout", "timeout_at", "shield", "cancel", "event_of", "queue",
    "locked", "condition", "barrier", "callbacks",
]  # fmt: skip
PROGRAMS = st.recursive(
    LEAVES,
    lambda nodes: st.tuples(
        st.sampled_from(KINDS), st.lists(nodes, min_size=1, max_size=4),
        st.integers(0, 4), st.booleans(),
    ),
    max_leaves=12,
)  # fmt: skip


class Keeper(World):
    """A world that keeps what history held after each change, and ends waits by chance."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.kept: list[dict[Any, messages.RecordedStep]] = []

    def _take(self, frames: Any) -> None:
        for frame in frames:
            super()._take([frame])
            self.keep()

    def keep(self) -> None:
        self.kept.append({key: msgspec.structs.replace(k) for key, k in self.history.items()})

    @property
    def is_over(self) -> bool:
        return self.ended is not None or bool(self.of(messages.Mismatch))

    async def live(self, program: Any) -> Any:
        """Run it to its end, ending sleeps and waits meanwhile; what it returned."""
        await self.load(CODE)
        self.start(params=program)
        for _ in range(4_000):
            await asyncio.sleep(self.chance.choice([0, 0, 0.0005]))
            if self.open and self.chance.random() < 0.2:
                key = self.chance.choice(sorted(self.open))
                how = self.chance.random()
                if key[0] == "sleep":
                    self.finish(key)
                elif how < 0.2:
                    self.finish(key, error=TimeoutError("no event came"))
                else:
                    self.deliver(key, self.chance.random())
                self.keep()
            if self.is_over:
                break
        assert not self.of(messages.Mismatch), self.of(messages.Mismatch)
        assert self.ended is not None, f"it hangs: {self.of(messages.Awaits)}"
        assert not any("DIVERGED" in line for line in self.printed), self.printed
        if self.ended.error is not None:
            return self.ended.error
        return self.ended.value


async def replayed(program: Any, seed: int) -> None:
    first = Keeper(random.Random(seed))
    try:
        live = await first.live(program)
        first.close()
        kept = first.kept
        again = _over(first.history, seed)
        assert await again.live(program) == live
        again.close()
        for history in random.Random(seed).sample(kept, min(len(kept), 4)):
            part = _over(history, seed + 1)
            live = await part.live(program)
            whole = _over(part.history, seed)
            assert await whole.live(program) == live
            part.close()
            whole.close()
    finally:
        first.close()


def _over(history: dict[Any, messages.RecordedStep], seed: int) -> Keeper:
    world = Keeper(random.Random(seed))
    world.history = {key: msgspec.structs.replace(known) for key, known in history.items()}
    world.moment = max((known.ended for known in history.values()), default=0)
    world.moment = max([world.moment, *(known.started for known in history.values())])
    return world


@given(program=PROGRAMS, seed=st.integers(0, 1 << 16))
@settings(max_examples=EXAMPLES, database=None)
def test_a_program_goes_the_same_way_in_every_replay(program: Any, seed: int) -> None:
    asyncio.run(replayed(program, seed))
