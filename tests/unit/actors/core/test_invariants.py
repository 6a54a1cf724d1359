"""Invariants: random programs under crashes and commands at random points end as if undisturbed.

Each test draws a program and a seed; the seed chooses what happens next in a world of one tenant.
After every input the core is audited (no silent stop), and at the end the log is read again.
INVARIANT_EXAMPLES sets how many programs each test draws.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

from core_world import Fatal, StepApi, StepFailed, World, config, gather, payload
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dynamic_workflows.actors.core.tenant_core import TenantCore
from dynamic_workflows.actors.instances.decisions import Key
from dynamic_workflows.eventlog.events import TERMINAL_TYPES, Row, unfold

Op = tuple[Any, ...]

_dos = st.tuples(
    st.just("do"),
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 3),  # failures before it succeeds
    st.integers(0, 3),  # limit of retries
    st.booleans(),  # fatal
)
_sleeps = st.tuples(st.just("sleep"), st.sampled_from([0, 50, 5_000, 3_600_000]))
_waits = st.tuples(st.just("wait"))
_lates = st.tuples(st.just("late"), st.sampled_from([1_000, 60_000]))
_leaf = st.one_of(_dos, _dos, _sleeps, _waits, _lates)
_programs = st.recursive(
    st.lists(_leaf, max_size=4),
    lambda inner: st.lists(
        st.one_of(_leaf, st.tuples(st.just("par"), st.lists(inner, min_size=2, max_size=3))),
        max_size=4,
    ),
    max_leaves=8,
)


class Story:
    """A program and what it may do; counts how often each callback ran."""

    def __init__(self, ops: list[Op], **settings: Any) -> None:
        self.ops = ops
        self.world = World(self.run, lost_in_a_row_max=10**6, **settings)
        self.ran: Counter[tuple[str, int]] = Counter()
        self.waits: Counter[str] = Counter()
        self.key: Key = ("Job", "i")

    async def run(self, step: StepApi, params: Any) -> Any:
        return await self._block(step, self.ops, "x")

    async def _block(self, step: StepApi, ops: list[Op], path: str) -> list[Any]:
        results: list[Any] = []
        for index, op in enumerate(ops):
            try:
                results.append(await self._op(step, op, f"{path}{index}"))
            except StepFailed as failed:
                results.append(["failed", failed.error.name])
        return results

    async def _op(self, step: StepApi, op: Op, path: str) -> Any:
        if op[0] == "do":
            return await self._do(step, path, *op[1:])
        if op[0] == "sleep":
            return await step.sleep(f"s{path}", op[1])
        if op[0] == "late":
            return await step.wait(f"late{path}", f"never{path}", op[1])
        if op[0] == "wait":
            event = await step.wait(f"w{path}", self._type(path), 365 * 86_400_000)
            return event["payload"]
        branches = [self._block(step, ops, f"{path}b{n}_") for n, ops in enumerate(op[1])]
        return await gather(*branches)

    def _type(self, path: str) -> str:
        """Branches wait for types of their own, so that who gets what does not hang on timing."""
        return "t" + path.rstrip("0123456789")

    def _do(
        self, step: StepApi, path: str, name: str, failures: int, limit: int, fatal: bool
    ) -> Any:
        # Occurrence numbers depend on the order of calls, which parallel branches do not promise.
        name = f"{name}-{path}"

        def callback(attempt: int) -> str:
            summary = self.world.core.state.index.get(self.key)
            assert summary is not None
            assert summary.instance is not None
            known = summary.instance.steps["do", name, 1]
            assert not known.outcome, "a step with a recorded outcome never runs again"
            assert known.attempt == attempt
            self.ran[name, attempt] += 1
            assert self.ran[name, attempt] == 1, "an attempt runs once"
            if known.failures < failures:
                raise (Fatal if fatal else ValueError)(name)
            return name

        return step.do(name, callback, config(limit=limit, delay_ms=2_000))

    def needed(self) -> Counter[str]:
        """How many events of each type the program waits for."""
        found: Counter[str] = Counter()

        def walk(ops: list[Op], path: str) -> None:
            for index, op in enumerate(ops):
                if op[0] == "wait":
                    found[self._type(f"{path}{index}")] += 1
                elif op[0] == "par":
                    for n, inner in enumerate(op[1]):
                        walk(inner, f"{path}{index}b{n}_")

        walk(self.ops, "x")
        return found


def undisturbed(ops: list[Op]) -> Any:
    story = Story(ops)
    world = story.world
    world.create()
    for name, count in story.needed().items():
        for n in range(count):
            world.send_event(story.key, name, [name, n])
    while world.status(story.key) != "complete":
        world.pump()
        if world.status(story.key) != "complete":
            assert world.advance_to_next()
    return world.output(story.key)


class Disturber:
    """Chooses what happens next."""

    def __init__(self, story: Story, seed: int) -> None:
        self.story = story
        self.world = story.world
        self.random = random.Random(seed)
        self.events: list[tuple[str, Any]] = []
        for name, count in sorted(story.needed().items()):
            self.events += [(name, [name, n]) for n in range(count)]

    def disturb(self, times: int) -> None:
        moves = [self.calm] * 8 + [
            self.crash,
            self.kill,
            self.pause,
            self.resume,
            self.send,
            self.send,
            self.evict,
            self.time,
            self.time,
            self.late_answer,
        ]
        for _ in range(times):
            if self.world.status(self.story.key) == "complete":
                return
            self.random.choice(moves)()

    def calm(self) -> None:
        if not self.world.start_runnable():
            lives = [life for life, guest in self.world.guests.items() if guest.outbox]
            if lives:
                self.world.deliver(self.random.choice(lives))
            elif any(guest.running for guest in self.world.guests.values()):
                self.world.finish()

    def crash(self) -> None:
        self.world.crash(unfolded=self.random.random() < 0.5)

    def kill(self) -> None:
        lives = list(self.world.guests)
        for life in lives:
            del self.world.guests[life]
        if lives:
            lost = self.world.core.lives_lost(
                lives, reason="test", own=False, culprit=0, now_us=self.world.now
            )
            self.world.take(lost)

    def pause(self) -> None:
        self.world.command("pause", self.story.key)

    def resume(self) -> None:
        self.world.command("resume", self.story.key)

    def send(self) -> None:
        if self.events:
            name, value = self.events.pop(0)
            self.world.send_event(self.story.key, name, value)

    def evict(self) -> None:
        for key in list(self.world.core.evictable()):
            self.world.core.evict(key)

    def time(self) -> None:
        self.world.now += self.random.choice([1, 1_000, 70_000_000])
        due_us = self.world.core.next_due_us()
        if due_us is not None and due_us <= self.world.now:
            self.world.take(self.world.core.due(self.world.now))

    def late_answer(self) -> None:
        """Something that a dead lifetime still says is ignored."""
        from dynamic_workflows.loaders.protocol.messages import Done

        before = self.world.core.last_seq
        self.world.take(self.world.core.on_message(10**9, Done(1, 1, b"1"), now_us=self.world.now))
        assert self.world.core.last_seq == before

    def settle(self) -> None:
        """Let it come to its end."""
        self.world.slow = False
        while self.events:
            self.send()
        for _ in range(10_000):
            if self.world.status(self.story.key) == "complete":
                return
            self.world.command("resume", self.story.key)
            for guest in list(self.world.guests.values()):
                while guest.running:
                    guest.finish_callback()
            self.world.pump()
            if self.world.status(self.story.key) != "complete":
                self.world.advance_to_next()
        raise AssertionError(f"stuck: {self.world.core.why(self.story.key)}")


def check_log(rows: list[Row]) -> None:
    """What holds for the public rows of an instance that was restarted never."""
    attempts: dict[tuple[str | None, int], int] = {}
    in_flight: set[tuple[str | None, int]] = set()
    finished: set[tuple[str, str | None, int]] = set()
    for at, row in enumerate(rows):
        step = (row.step, row.count)
        if row.type == "attempt_started":
            assert row.attempt == attempts.get(step, 0) + 1, "attempts are 1, 2, 3 without gap"
            assert step not in in_flight
            attempts[step] = row.attempt
            in_flight.add(step)
        elif row.type in ("attempt_completed", "attempt_errored"):
            assert row.attempt == attempts[step]
            in_flight.remove(step)
        elif row.type.endswith(("_completed", "_errored", "_timed_out")) and row.step is not None:
            outcome = (row.type.split("_")[0], *step)
            assert outcome not in finished, "one outcome"
            finished.add(outcome)
        elif row.type in TERMINAL_TYPES:
            assert at == len(rows) - 1, "nothing after the end of the run"
    assert sum(row.type in TERMINAL_TYPES for row in rows) == 1
    check_events(rows)


def check_events(rows: list[Row]) -> None:
    """Each event is consumed at most once, per type in order of arrival."""
    arrived: dict[str, list[int]] = {}
    for row in rows:
        body = payload(row)
        if row.type == "event_received":
            arrived.setdefault(body["event_type"], []).append(row.seq)
        elif row.type == "wait_completed":
            assert arrived[body["event_type"]].pop(0) == body["event_seq"]


def check_replay(world: World) -> None:
    """Live state is the fold of the log, whichever form of the rows was read."""
    live = facts(world, world.core)
    assert facts(world, world.replayed()) == live
    assert facts(world, world.replayed(unfolded=True)) == live


def facts(world: World, core: TenantCore) -> Any:
    for summary in core.state.index:
        if summary.instance is not None and summary.instance.is_partial:
            summary.instance = None
        if summary.instance is None:
            core.load(summary.key, world.history(summary.key))
    return core.facts()


_quick = settings(
    max_examples=int(os.environ.get("INVARIANT_EXAMPLES", "150")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_quick
@given(_programs, st.integers(0, 2**32), st.booleans(), st.booleans())
@example(
    [("do", "a", 0, 0, False), ("par", [[("sleep", 50)], [("sleep", 50)]])], 32127, False, True
)
def test_whatever_disturbs_it_a_program_ends_as_undisturbed(
    ops: list[Op], seed: int, slow: bool, every_step: bool
) -> None:
    expected = undisturbed(ops)
    story = Story(ops, instance_idle_us=seed % 3 * 1_000_000)
    world = story.world
    world.slow = slow
    world.core.crash_at_every_step = world.crash_at_every_step = every_step
    world.create()
    disturber = Disturber(story, seed)
    disturber.disturb(60)
    check_replay(world)
    disturber.settle()
    assert world.output(story.key) == expected
    check_log(world.history(story.key))
    check_replay(world)
    world.command("delete", story.key)
    assert not world.core.exists(story.key)
    world.crash()
    assert not world.core.exists(story.key)


def test_a_crash_at_each_single_point_changes_no_result() -> None:
    ops: list[Op] = [
        ("do", "a", 1, 2, False),
        ("sleep", 3_600_000),
        ("wait",),
        ("par", [[("do", "b", 2, 3, False), ("wait",)], [("sleep", 5_000), ("late", 60_000)]]),
        ("do", "c", 1, 3, True),
    ]
    expected = undisturbed(ops)
    point = 0
    while True:
        story = Story(ops)
        world = story.world
        world.create()
        for name, count in story.needed().items():
            for n in range(count):
                world.send_event(story.key, name, [name, n])
        moves = 0
        crashed = False
        while world.status(story.key) != "complete":
            if moves == point:
                world.crash()
                crashed = True
            moves += 1
            if not (world.start_runnable() or world.deliver()):
                world.advance_to_next()
        assert world.output(story.key) == expected
        check_log(world.history(story.key))
        if not crashed:
            break
        point += 1
    assert point > 30
    assert len(unfold(world.rows[0])) == 1


class Saga:
    """Branches of steps that can be undone, and an end that fails or waits for ever."""

    def __init__(self, branches: list[int], fails: bool, broken: int | None) -> None:
        self.branches = branches
        self.fails = fails
        self.broken = broken
        """The handler of this step (counted over all) fails for good."""
        self.world = World(self.run)
        self.undone: list[str] = []
        self.world.create()

    async def run(self, step: StepApi, params: Any) -> Any:
        await gather(*[self._branch(step, n, size) for n, size in enumerate(self.branches)])
        if self.fails:
            raise ValueError("the end")
        await step.wait("for ever", "never", 365 * 86_400_000)

    async def _branch(self, step: StepApi, n: int, size: int) -> None:
        for m in range(size):
            if m % 2:
                await step.sleep(f"{n}-{m}", 1_000 * (n + 1))
            name = f"{n}-{m}"
            has_undo = (n + m) % 3 != 2
            await step.do(name, lambda attempt: 1, undo=self._undo if has_undo else None)

    def _undo(self, message: Any) -> None:
        if self.broken is not None and message.name == f"{self.broken}-0":
            raise Fatal("cannot be undone")
        self.undone.append(message.name)


@_quick
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 3)),
    st.integers(0, 2**32),
)
def test_a_rollback_runs_in_reverse_order_of_start_whatever_crashes(
    branches: list[int], fails: bool, broken: int | None, seed: int
) -> None:
    saga = Saga(branches, fails, broken)
    world, key = saga.world, ("Job", "i")
    chance = random.Random(seed)
    terminate_at = chance.randrange(60)
    for turn in range(10_000):
        if world.status(key) in ("errored", "terminated"):
            break
        if turn == terminate_at and not fails:
            world.command("terminate", key, rollback=True)
        elif turn < 60 and chance.random() < 0.15:
            world.crash(unfolded=chance.random() < 0.5)
        elif not (world.start_runnable() or world.deliver()):
            if world.status(key) == "waiting" and turn > terminate_at and not fails:
                world.command("terminate", key, rollback=True)
            else:
                assert world.advance_to_next()
    rows = world.history(key)
    started = [row.step for row in rows if row.type == "step_started"]
    with_undo = [
        row.step for row in rows if row.type == "step_started" and payload(row).get("rollback")
    ]
    wanted = with_undo[::-1]
    if f"{broken}-0" in wanted:
        wanted = wanted[: wanted.index(f"{broken}-0")]
    assert [row.step for row in rows if row.type == "rollback_step_completed"] == wanted
    assert set(saga.undone) == set(wanted)
    assert len(started) == len(set(started))
    data_is_failed = f"{broken}-0" in with_undo
    ended = payload(rows[-1]) or {}
    if with_undo:
        outcome = "failed" if data_is_failed else "complete"
        assert ended["rollback"]["outcome"] == outcome
    else:
        assert "rollback" not in ended
    check_log([row for row in rows if not row.type.startswith("rollback")])
    check_replay(world)


@_quick
@given(
    st.sampled_from(["sleep", "wait", "retry"]),
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100), st.booleans()), max_size=5),
    st.integers(1, 100),
)
def test_pauses_take_nothing_from_a_timer(
    kind: str, pauses: list[tuple[int, int, bool]], length_s: int
) -> None:
    async def program(step: StepApi, params: Any) -> Any:
        if kind == "sleep":
            await step.sleep("x", length_s * 1_000)
        elif kind == "wait":
            try:
                await step.wait("x", "never", length_s * 1_000)
            except StepFailed:
                pass
        else:
            await step.do("x", _fails_once, config(limit=1, delay_ms=length_s * 1_000))

    world = World(program)
    key = world.create()
    world.pump()
    left = length_s
    for running_s, paused_s, is_crash in pauses:
        if running_s >= left:
            break
        world.advance(running_s)
        left -= running_s
        world.command("pause", key)
        assert world.status(key) == "paused"
        if is_crash:
            world.crash()
        world.now += paused_s * 1_000_000
        assert world.core.next_due_us() is None
        world.command("resume", key)
        world.pump()
    world.advance(left - 0.001)
    assert world.status(key) == "waiting"
    world.advance(0.001)
    assert world.status(key) == "complete"


def _fails_once(attempt: int) -> Any:
    if attempt == 1:
        raise ValueError("no")


def _advance_soon(world: World) -> bool:
    """To the next timer, if that is no deadline of a wait and no end of retention."""
    due_us = world.core.next_due_us()
    return due_us is not None and due_us < world.now + 60_000_000 and world.advance_to_next()


@_quick
@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans())
def test_many_instances_share_few_slots_and_all_come_to_their_end(
    seed: int, running_max: int, every_step: bool
) -> None:
    async def program(step: StepApi, params: Any) -> Any:
        total = 0
        for n in range(params % 3 + 1):
            total += await step.do(f"a{n}", lambda attempt: 1)
            await step.sleep(f"s{n}", 1_000 * (params % 4))
        event = await step.wait("w", "go")
        return [params, total, event["payload"]]

    chance = random.Random(seed)
    world = World(program, running_max=running_max, instance_idle_us=chance.choice([0, 500_000]))
    world.core.crash_at_every_step = world.crash_at_every_step = every_step
    keys = [world.create(f"i{n}", n) for n in range(6)]
    told: set[Key] = set()
    for turn in range(20_000):
        open_keys = [key for key in keys if world.status(key) != "complete"]
        if not open_keys:
            break
        assert sum(not life.idle for life in world.core.lifetimes.by_number.values()) <= running_max
        key = chance.choice(open_keys)
        act = chance.random()
        if act < 0.03 and turn < 300:
            world.crash(unfolded=act < 0.015)
        elif act < 0.1 and turn < 300:
            world.command(chance.choice(["pause", "resume", "resume"]), key)
        elif act < 0.15 and key not in told:
            told.add(key)
            world.send_event(key, "go", key[1])
        elif act < 0.2:
            for one in list(world.core.evictable()):
                world.core.evict(one)
        elif not (world.start_runnable() or world.deliver() or _advance_soon(world)):
            world.command("resume", key)
            if key not in told:
                told.add(key)
                world.send_event(key, "go", key[1])
        if turn >= 300 and world.status(key) == "paused":
            world.command("resume", key)
    for n, key in enumerate(keys):
        assert world.output(key) == [n, n % 3 + 1, f"i{n}"]
        check_log(world.history(key))
    check_replay(world)
