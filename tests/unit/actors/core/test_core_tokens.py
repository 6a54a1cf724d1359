"""A command that is sent again with its token was done once, live and after a replay."""

from __future__ import annotations

import random
from typing import Any

import pytest
from core_world import S, StepApi, World, payload
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_workflows.actors.core import state
from dynamic_workflows.actors.core.tenant_core import TenantCore
from dynamic_workflows.actors.instances import fold
from dynamic_workflows.eventlog.errors import InstanceError

KEY = ("Job", "i")


async def waits_twice(step: StepApi, params: Any) -> Any:
    await step.do("one", lambda attempt: 1, undo=lambda *_: None)
    first = await step.wait("first", "go", 10_000_000)
    return [first["payload"], (await step.wait("second", "go", 10_000_000))["payload"]]


def world_of(program: Any = waits_twice) -> World:
    world = World(program)
    world.create()
    world.pump()
    return world


def event(world: World, token: str, value: bytes = b"1") -> None:
    world.command("send_event", KEY, "go", value, token=token)
    world.pump()


def facts(world: World, core: TenantCore) -> Any:
    for summary in core.state.index:
        if summary.instance is None:
            assert core.load(summary.key, world.history(summary.key))
    return core.facts(), list(core.state.deletions)


COMMANDS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("send_event", ("go", b"1"), {}),
    ("pause", (), {}),
    ("terminate", (), {"rollback": False}),
    ("terminate", (), {"rollback": True}),
    ("restart", (), {"from_": None}),
    ("restart", (), {"from_": {"name": "one"}}),
    ("delete", (), {}),
]


@pytest.mark.parametrize("when", ["at once", "later", "after a crash"])
@pytest.mark.parametrize(("name", "args", "more"), COMMANDS)
def test_a_command_with_a_known_token_writes_nothing(
    when: str, name: str, args: Any, more: Any
) -> None:
    world = world_of()
    assert world.status(KEY) == "waiting"
    written = len(world.rows)
    world.command(name, KEY, *args, token="t", **more)
    assert len(world.rows) > written
    if when != "at once":
        world.pump()
    if when == "after a crash":
        world.crash()
        world.pump()
    before = world.core.last_seq
    if world.core.exists(KEY):
        world.command(name, KEY, *args, token="t", **more)
    else:
        world.take(world.core.delete(KEY, token="t", now_us=world.now))
    assert world.core.last_seq == before
    tokens = [body for row in world.rows if (body := payload(row)) and body.get("token") == "t"]
    assert len(tokens) == 1


@pytest.mark.parametrize("is_pending", [False, True])
def test_a_pause_that_comes_again_after_a_resume_pauses_nothing(is_pending: bool) -> None:
    async def job(step: StepApi, params: Any) -> Any:
        await step.do("slow", lambda attempt: 1)
        return await step.wait("wait", "go", 10_000_000)

    world = World(job)
    world.slow = is_pending
    world.create()
    world.pump()
    world.command("pause", KEY, token="pause")
    assert world.status(KEY) == ("waitingForPause" if is_pending else "paused")
    world.command("resume", KEY, token="resume")
    world.pump()
    going = world.status(KEY)
    world.command("pause", KEY, token="pause")
    assert world.status(KEY) == going
    world.command("pause", KEY, token="another")
    world.command("resume", KEY, token="resume")
    assert world.status(KEY) in ("waitingForPause", "paused")


def test_an_event_that_comes_again_after_it_was_consumed_does_not_end_the_next_wait() -> None:
    world = world_of()
    event(world, "a", b"1")
    event(world, "a", b"1")
    assert world.status(KEY) == "waiting"
    event(world, "b", b"1")
    assert world.output(KEY) == [1, 1]
    event(world, "b", b"1")  # And not "instance.finished".
    with pytest.raises(InstanceError):
        event(world, "c")


def test_events_without_a_token_are_each_their_own() -> None:
    world = world_of()
    for _ in range(2):
        world.send_event(KEY, "go", 1)
        world.pump()
    assert world.output(KEY) == [1, 1]


@pytest.mark.parametrize("from_", [None, {"name": "one"}])
@pytest.mark.parametrize("has_ended", [False, True])
def test_tokens_outlive_restarts(from_: Any, has_ended: bool) -> None:
    world = world_of()
    event(world, "a")
    if has_ended:
        event(world, "b")
    world.command("restart", KEY, from_=from_, token="r")
    world.pump()
    for _ in range(2):
        rows = len(world.rows)
        event(world, "a")
        world.command("restart", KEY, from_=from_, token="r")
        assert len(world.rows) == rows
        assert facts(world, world.core) == facts(world, world.replayed())
        world.crash(unfolded=True)
        world.pump()
    assert world.history(KEY)[-1].run == 2


def test_what_was_made_again_under_a_name_outlives_the_late_delete_of_the_old() -> None:
    world = world_of()
    world.command("delete", KEY, token="d")
    world.create()
    world.pump()
    world.command("delete", KEY, token="d")
    assert world.core.exists(KEY)
    world.crash()
    world.command("delete", KEY, token="d")
    assert world.core.exists(KEY)


def test_a_batch_of_deletes_that_comes_again_has_the_same_answer() -> None:
    world = world_of()
    for _ in range(2):
        decision = world.core.delete_batch("Job", ["i", "none"], token="d", now_us=world.now)
        answer = world.take(decision)
        assert answer["deleted"] == ["i"]
        assert [error["id"] for error in answer["errors"]] == ["none"]
        world.crash()
    assert [row.type for row in world.rows].count("workflow_deleted") == 1


def test_only_the_newest_tokens_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "TOKENS_MAX", 3)
    monkeypatch.setattr(state, "DELETIONS_MAX", 1)
    world = world_of()
    for name in "abcde":
        world.command("send_event", KEY, "other", b"1", token=name)
    loaded = world.core.state.loaded(KEY)[1]
    assert list(loaded.tokens) == ["c", "d", "e"]
    world.create("j")
    world.command("delete", KEY, token="x")
    world.command("delete", ("Job", "j"), token="y")
    assert list(world.core.state.deletions) == [("y", ("Job", "j"))]
    assert facts(world, world.replayed()) == facts(world, world.core)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_commands_that_are_sent_again_at_random_are_done_once_each(seed: int) -> None:
    chance = random.Random(seed)
    world = world_of()
    sent: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for number in range(25):
        if sent and chance.random() < 0.4:
            name, args, more = chance.choice(sent)
        else:
            name, args, more = chance.choice([*COMMANDS[:-1], ("resume", (), {})])
            more = more | {"token": str(number)}
        try:
            world.command(name, KEY, *args, **more)
        except InstanceError:
            pass
        else:
            sent.append((name, args, more))
        if chance.random() < 0.5:
            world.advance(chance.choice([0, 1 / S]))
        if chance.random() < 0.2:
            world.crash(unfolded=chance.random() < 0.5)
        tokens = [body["token"] for row in world.rows if "token" in (body := payload(row) or {})]
        assert len(tokens) == len(set(tokens))
        assert facts(world, world.core) == facts(world, world.replayed())
