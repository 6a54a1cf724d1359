"""Rollback in the guest: handlers, their registration in a replay, and the phase after the run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from guest_world import World, flow

from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import RecordedStep


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


def undo(name: str, *, token: int = -1, attempt: int = 1, **facts: Any) -> messages.Undo:
    error = facts.pop("error", messages.Error("ValueError", "why", "builtins"))
    output = facts.pop("output", b"1")
    return messages.Undo(token, name, 1, attempt, 3, error, output, **facts)


BOOKING = flow("""
def back(args):
    print(args.ctx.step.name, args.ctx["attempt"], type(args.error).__name__, args.error,
          args.error.name, args.output, args["output"])
async def later(args):
    if args.output is None:
        raise NonRetryableError("cannot")
    return object()
await step.do("book", lambda: 1, rollback=back, rollback_config={"timeout": 5})
await step.do("pay", lambda: 2, rollback=later)
await step.do("plain", lambda: 3)
raise ValueError("why")
""")


async def fail(world: World) -> int:
    with pytest.raises(ValueError, match="why"):
        await world.run(BOOKING)
    return world.life


async def test_handlers_are_called_after_the_run_has_failed(world: World) -> None:
    life = await fail(world)
    world.tokens[-1] = ("do", "book", 1)
    world.send(undo("book"), life)
    await world.until(lambda: any(m.token == -1 for m in world.of(messages.Done)))
    assert world.printed[-1] == "book 3 ValueError why ValueError 1 1"


async def test_what_a_handler_returns_is_nobodys_business(world: World) -> None:
    life = await fail(world)
    world.tokens[-1] = ("do", "pay", 1)
    world.send(undo("pay"), life)
    await world.until(lambda: any(m.token == -1 for m in world.of(messages.Done)))
    assert world.of(messages.Done)[-1].value == b"null"


async def test_a_handler_that_fails_is_tried_again_under_its_token(world: World) -> None:
    life = await fail(world)
    world._failed = lambda message: None  # type: ignore[method-assign]
    world.tokens[-2] = ("do", "pay", 1)
    world.send(undo("pay", token=-2, output=None), life)
    await world.until(lambda: bool(world.of(messages.AttemptFailed)))
    (failed,) = world.of(messages.AttemptFailed)
    assert (failed.token, failed.error.name, failed.error.fatal) == (-2, "NonRetryableError", True)
    world.send(undo("pay", token=-2, attempt=2), life)
    await world.until(lambda: any(m.attempt == 2 for m in world.of(messages.Done)))


async def test_termination_is_told_by_its_name(world: World) -> None:
    life = await fail(world)
    world.tokens[-1] = ("do", "book", 1)
    world.send(undo("book", error=messages.Error("Terminated", "by hand", "")), life)
    await world.until(lambda: any(m.token == -1 for m in world.of(messages.Done)))
    assert "StepError Terminated: by hand Terminated" in world.printed[-1]


async def test_a_handler_that_the_code_no_longer_registers_is_missing(world: World) -> None:
    life = await fail(world)
    world._failed = lambda message: None  # type: ignore[method-assign]
    world.send(undo("plain"), life)
    await world.until(lambda: bool(world.of(messages.AttemptFailed)))
    error = world.of(messages.AttemptFailed)[0].error
    assert (error.name, error.fatal) == ("RollbackMissing", True)
    assert "plain" in error.message


async def test_a_handler_may_be_cancelled(world: World) -> None:
    code = flow("""
    async def hang(args):
        print("hanging")
        try:
            await asyncio.Event().wait()
        finally:
            print("cancelled")
    await step.do("s", lambda: 1, rollback=hang)
    raise ValueError("why")
    """)
    with pytest.raises(ValueError, match="why"):
        await world.run(code)
    world.send(undo("s"), world.life)
    await world.until(lambda: "hanging" in world.printed)
    world.send(messages.Cancel(-1, 1), world.life)
    await world.until(lambda: "cancelled" in world.printed)
    assert world.of(messages.AttemptFailed) == []


@pytest.mark.parametrize("call", ['step.do("x", print)', 'step.sleep("x", 1)',
                                  'step.wait_for_event("x", "t")'])  # fmt: skip
async def test_no_step_starts_in_a_rollback(world: World, call: str) -> None:
    code = flow(f"""
    async def handler(args):
        try:
            await {call}
        except WorkflowFatalError as error:
            print("refused", error)
    await step.do("s", lambda: 1, rollback=handler)
    raise ValueError("why")
    """)
    with pytest.raises(ValueError, match="why"):
        await world.run(code)
    said = len(world.log)
    world.tokens[-1] = ("do", "s", 1)
    world.send(undo("s"), world.life)
    await world.until(lambda: any(m.token == -1 for m in world.of(messages.Done)))
    assert "refused" in world.printed[-1]
    assert {type(message) for _, message in world.log[said:]} == {messages.Log, messages.Done}


REGISTERING = """
got = []
async def work():
    print("ran")
async def handler(args): print("undone", args.output)
got.append(await step.do("done", work, rollback=handler))
try:
    await step.do("failed", work, rollback=handler)
except ValueError as error:
    got.append(str(error))
got.append(await step.do("open", work, rollback=handler))
got.append(await step.sleep("slept", 5))
got.append(await step.wait_for_event("open event", "t"))
print(got)
got[0]["x"]
await step.do("never reached", work, rollback=handler)
"""


@pytest.mark.behaviour(231, 232)
async def test_registering_runs_no_callback_and_waits_for_nothing(world: World) -> None:
    await world.load(flow(REGISTERING))
    world.history = {
        ("do", "done", 1): RecordedStep("do", "done", 1, 1, b'"value"'),
        ("do", "failed", 1): RecordedStep(
            "do", "failed", 1, 2, None, messages.Error("ValueError", "no")
        ),
        ("do", "open", 1): RecordedStep("do", "open", 1, 0),
        ("do", "later", 1): RecordedStep("do", "later", 1, 1, b"1", None, "index.py:99"),
    }
    life = world.start(mode="rollback")
    assert await world.until_ended() is None
    assert world.printed == ["['value', 'no', None, None, None]"]
    assert not world.of(messages.StepRequest) + world.of(messages.Sleep) + world.of(messages.Wait)
    assert not world.of(messages.Mismatch)
    for token, name in enumerate(("done", "failed", "open")):
        world.tokens[-token - 1] = ("do", name, 1)
        world.send(undo(name, token=-token - 1, output=b"null"), life)
    await world.until(lambda: len(world.of(messages.Done)) == 3)
    assert world.printed[1:] == ["undone None"] * 3


@pytest.mark.behaviour(233)
async def test_registering_ends_where_the_code_waits_for_something_else(world: World) -> None:
    await world.load(flow("await asyncio.Event().wait()"))
    world.start(mode="rollback")
    assert await world.until_ended() is None


@pytest.mark.behaviour(237)
async def test_cached_steps_register_their_handlers_in_a_replay(world: World) -> None:
    await fail(world)
    world.printed.clear()
    with pytest.raises(ValueError, match="why"):
        await world.again()
    world.tokens[-1] = ("do", "book", 1)
    world.send(undo("book"), world.life)
    await world.until(lambda: any(m.token == -1 for m in world.of(messages.Done)))
