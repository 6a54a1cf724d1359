"""Steps in the guest: what the API checks, what callbacks get, what attempts become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from guest_world import World, flow

from dynamic_workflows.eventlog.errors import UnserialisableValueError, ValueTooLargeError
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.sdk.entrypoints import (
    NonRetryableDelayError,
    NonRetryableError,
    StepError,
    WorkflowFatalError,
)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


@pytest.mark.behaviour(58, 356)
async def test_both_forms_run_and_give_their_values(world: World) -> None:
    output = await world.run(
        flow("""
        direct = await step.do("direct", lambda: 1)

        @step.do("decorated")
        async def decorated(ctx):
            return ctx.step.name

        @step.do()
        def named():
            return "named"

        @step.do
        async def bare():
            return "bare"

        return [direct, await decorated(), await named(), await bare()]
        """)
    )
    assert output == [1, "decorated", "named", "bare"]
    assert [m.name for m in world.of(messages.StepRequest)] == [
        "direct",
        "decorated",
        "named",
        "bare",
    ]


@pytest.mark.parametrize("step", ['step.do("s", one)', 'step.do("s")(one)()'])
async def test_neither_form_of_a_step_counts_as_a_future_of_run(world: World, step: str) -> None:
    body = f"""
        async def one():
            return 1
        await {step}
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        return task.get_name()
        """
    assert await world.run(flow(body, "import asyncio")) == "Task-1"


@pytest.mark.behaviour(355)
async def test_declaring_runs_nothing(world: World) -> None:
    await world.run(
        flow("""
        @step.do("never")
        async def never():
            raise RuntimeError
        """)
    )
    assert world.of(messages.StepRequest) == []


@pytest.mark.behaviour(361, 367)
async def test_a_sync_run_returns_its_output(world: World) -> None:
    code = """
    from dynamic_workflows import WorkflowEntrypoint
    class Flow(WorkflowEntrypoint):
        def run(self, event, step):
            return event["payload"], event.instanceId, event.workflow_name, event.timestamp.year
    """
    assert await world.run(code, params={"a": (1,)}) == ({"a": (1,)}, "one", "Flow", 2026)


async def test_sync_callbacks_that_return_awaitables_are_awaited(world: World) -> None:
    body = """
    async def work(): return 7
    return await step.do("a", lambda: work())
    """
    assert await world.run(flow(body)) == 7


@pytest.mark.behaviour(91, 92, 93)
async def test_ctx_has_attributes_and_keys_and_is_the_callbacks_own(world: World) -> None:
    output = await world.run(
        flow("""
        seen = []
        async def work(ctx):
            seen.append([ctx.attempt, ctx["attempt"], ctx.step.count, ctx.config.retries.limit])
            ctx.config["retries"]["limit"] = 0
            if ctx.attempt < 3:
                raise ValueError("again")
            return [seen, ctx["config"]["timeout"], ctx.config.retries.delay]
        config = {"retries": {"limit": 2, "delay": "1 second"}, "timeout": 5000}
        return await step.do("work", work, config=config)
        """)
    )
    assert output == [[[1, 1, 1, 2], [2, 2, 1, 2], [3, 3, 1, 2]], 5000, "1 second"]


async def test_the_recorded_config_wins_over_the_code(world: World) -> None:
    await world.load(
        flow("""
        async def work(ctx): return [ctx.config.retries.limit, ctx.config.timeout]
        return await step.do("work", work, config={"retries": {"limit": 9, "delay": 1}})
        """)
    )
    world.before_go = lambda key, attempt: False
    life = world.start()
    await world.until(lambda: bool(world.of(messages.StepRequest)))
    recorded = b'{"retries":{"limit":1,"delay_ms":7,"backoff":"linear"},"timeout_ms":60}'
    world.send(messages.Go(world.of(messages.StepRequest)[0].token, 2, recorded), life)
    assert await world.until_ended() == [1, 60]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('step.do("x", 5)', "needs a callback"),
        ('step.do("x", "y", rollback=5)', "needs a callback"),
        ('step.do("x", print, rollback=5)', "rollback"),
        ('step.do("x", print, rollback_config={})', "rollback"),
        ('step.do("x", print, rollback=print, rollback_config={"no": 1})', "'no'"),
        ('step.do("a" * 257, print)', "256"),
        ('step.do("a\\nb", print)', "control"),
        ('step.do("a\\udfff", print)', "control"),
        ("step.do(7, print)", "text"),
        ('step.do("x", print, config={"retries": {"limit": 1}})', "'delay'"),
        ('step.do("x", print, config={"retries": {"limit": False}})', "not False"),
        ('step.do("x", print, config={"retries": {"limit": -1}})', "from 0 to 10000, not -1"),
        ('step.do("x", print, config={"retries": {"limit": 1.5}})', "from 0 to 10000, not 1.5"),
        ('step.do("x", print, config={"retries": {"limit": "3"}})', "from 0 to 10000, not '3'"),
        ('step.do("x", print, config={"retries": {"delay": 1}})', "'limit'"),
        ('step.do("x", print, config={"retries": {"limit": -1, "delay": 1}})', "limit"),
        ('step.do("x", print, config={"retries": {"limit": 10001, "delay": 1}})', "limit"),
        ('step.do("x", print, config={"retries": {"limit": True, "delay": 1}})', "limit"),
        ('step.do("x", print, config={"retries": {"limit": 1, "delay": "soon"}})', "delay"),
        ('step.do("x", print, config={"retries": {"limit": 1, "delay": -1}})', "delay"),
        ('step.do("x", print, config={"retries": {"limit": 1, "delay": 1, "x": 1}})', "'x'"),
        (
            'step.do("x", print, config={"retries": {"limit": 1, "delay": 1, "backoff": "no"}})',
            "backoff",
        ),
        ('step.do("x", print, config={"retries": {}})', "'limit'"),
        ('step.do("x", print, config={"timeout": 0})', "timeout"),
        ('step.do("x", print, config={"timeout": "never"})', "timeout"),
        ('step.do("x", print, config={"sensitive": True})', "sensitive"),
        ('step.do("x", print, config={"lost": "x"})', "lost"),
        ('step.do("x", print, config=[1])', "config"),
        ('step.sleep("a\\x01", 1)', "control"),
        ('step.sleep("a", "forever")', "no duration"),
        ('step.sleep("a", -1)', "no duration"),
        ('step.sleep("a", "366 days")', "365"),
        ('step.sleep_until("a", __import__("datetime").datetime(2030, 1, 1))', "time zone"),
        ('step.sleep_until("a", "tomorrow")', "datetime"),
        ('step.wait_for_event("a", "no.dot")', "event type"),
        ('step.wait_for_event("a", "-x")', "event type"),
        ('step.wait_for_event("a", "t" * 101)', "event type"),
        ('step.wait_for_event("a", "t\\n")', "event type"),
        ('step.wait_for_event("a", "t", timeout=999)', "1 second"),
        ('step.wait_for_event("a", "t", timeout=0)', "1 second"),
        ('step.wait_for_event("a", "t", timeout="2 years")', "365"),
        ('step.wait_for_event("a" * 257, "t")', "256"),
    ],
)
@pytest.mark.behaviour(5, 6, 60, 61, 62, 65, 146, 170, 211)
async def test_misuse_is_fatal_and_says_nothing_to_the_supervisor(
    world: World, call: str, message: str
) -> None:
    with pytest.raises(WorkflowFatalError, match=message):
        await world.run(flow(f"await {call}"))
    assert not world.of(messages.StepRequest) + world.of(messages.Sleep) + world.of(messages.Wait)


@pytest.mark.behaviour(59)
async def test_awaiting_a_declaration_without_a_callback_says_so(world: World) -> None:
    with pytest.raises(WorkflowFatalError, match="needs a callback"):
        await world.run(flow('await step.do("x")'))


@pytest.mark.behaviour(66)
async def test_misuse_can_be_caught_and_takes_no_occurrence(world: World) -> None:
    output = await world.run(
        flow("""
        try:
            await step.do("x", lambda: 1, config={"no": 1})
        except WorkflowFatalError:
            pass
        async def count(ctx): return ctx.step.count
        return await step.do("x", count)
        """)
    )
    assert output == 1


@pytest.mark.behaviour(67)
async def test_checks_come_in_their_order(world: World) -> None:
    output = await world.run(
        flow("""
        async def message(*args, **kwargs):
            try:
                await step.do(*args, **kwargs)
            except WorkflowFatalError as error:
                return str(error)
        return [
            await message("\\n", 5, rollback=5, config={"no": 1}),
            await message("\\n", print, rollback=5, config={"no": 1}),
            await message("\\n", print, config={"no": 1}),
            await message("\\n", print, config={"no": 1}),
            await message("\\n", print, config={"no": 1}),
        ]
        """),
        steps_max=2,
    )
    assert "callback" in output[0]
    assert "rollback" in output[1]
    assert "control" in output[2]
    assert "control" in output[3]
    assert "limit of 2 steps" in output[4]


@pytest.mark.parametrize("name", ["", " ", "ünïcødé ☃", "a" * 256, "\x7f"])
@pytest.mark.behaviour(5)
async def test_any_other_name_is_fine(world: World, name: str) -> None:
    assert await world.run(flow(f"return await step.do({name!r}, lambda: 1)")) == 1


@pytest.mark.behaviour(257, 259, 261)
async def test_the_step_limit_counts_do_calls_alone_and_in_replays_too(world: World) -> None:
    code = flow("""
    for i in range(event.payload):
        await step.do("s", lambda: i)
        @step.do("declared, not called")
        def declared(): pass
    return "fine"
    """)
    assert await world.run(code, params=3, steps_max=3) == "fine"
    assert await world.again(params=3, steps_max=3) == "fine"
    with pytest.raises(WorkflowFatalError, match="limit of 3"):
        await world.again(params=4, steps_max=3)


async def test_a_direct_callback_with_other_parameters_is_a_type_error(world: World) -> None:
    with pytest.raises(TypeError, match="other"):
        await world.run(flow('await step.do("x", lambda other: 1)'))
    assert world.of(messages.StepRequest) == []


async def test_callbacks_of_every_kind_are_called_with_what_they_take(world: World) -> None:
    output = await world.run(
        flow("""
        import functools
        class Worker:
            def method(self, ctx): return ctx.attempt
            async def coroutine(self): return "c"
            def __call__(self, ctx): return ctx.step.name
            @staticmethod
            def static(ctx, extra=5): return extra
        async def keyword(*, ctx): return ctx.attempt
        async def anything(*args, **kwargs): return [list(args), kwargs]
        def partial(prefix, ctx): return prefix + ctx.step.name
        w = Worker()
        return [await step.do("s", f) for f in (
            w.method, w.coroutine, w, Worker.static, keyword, anything,
            functools.partial(partial, "p-"), dict)]
        """)
    )
    assert output == [1, "c", "s", 5, 1, [[], {}], "p-s", {}]


# --- attempts ------------------------------------------------------------------------------------


@pytest.mark.behaviour(80)
async def test_by_default_a_step_is_tried_six_times(world: World) -> None:
    with pytest.raises(ValueError, match="no"):
        await world.run(flow('def work(): raise ValueError("no")\nawait step.do("s", work)'))
    assert [message.attempt for message in world.of(messages.AttemptFailed)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.behaviour(94, 363)
async def test_errors_keep_class_message_and_args(world: World) -> None:
    output = await world.run(
        flow(
            """
        seen = []
        def thrower(make):
            def work(): raise make()
            return work
        makers = [
            lambda: ValueError("v", 2), lambda: KeyError("k"), lambda: OSError(2, "no such"),
            lambda: Own("a", 5), lambda: Odd(7), lambda: NonRetryableError("stop"),
            lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), lambda: ZeroDivisionError(),
            lambda: StopIteration(3), lambda: SystemExit(4),
            lambda: __import__("json").JSONDecodeError("m", "d", 0),
        ]
        for make in makers:
            try:
                await step.do("s", thrower(make), config={"retries": {"limit": 0, "delay": 0}})
            except (Exception, BaseException) as error:
                seen.append([type(error).__name__, str(error), list(error.args)])
                if isinstance(error, Own):
                    seen.append(error.code)
        return seen
        """,
            before="""
class Own(Exception):
    def __init__(self, text, code):
        super().__init__(text, code)
        self.code = code

class Odd(Exception):
    def __init__(self, number):
        super().__init__(f"odd {number}")
""",
        )
    )
    assert output == [
        ["ValueError", "('v', 2)", ["v", 2]],
        ["KeyError", "'k'", ["k"]],
        ["FileNotFoundError", "[Errno 2] no such", [2, "no such"]],
        ["Own", "('a', 5)", ["a", 5]],
        5,
        ["Odd", "odd 7", ["odd 7"]],
        ["NonRetryableError", "stop", ["stop"]],
        ["UnicodeDecodeError", "'utf-8' codec can't decode byte 0x78 in position 0: bad",
         ["utf-8", b"x", 0, 1, "bad"]],
        ["ZeroDivisionError", "", []],
        ["StepError", "StopIteration: 3", ["3"]],
        ["StepError", "SystemExit: 4", ["4"]],
        ["JSONDecodeError", "m: line 1 column 1 (char 0)", ["m: line 1 column 1 (char 0)"]],
    ]  # fmt: skip
    assert await world.again() == output


async def test_a_group_of_errors_comes_back_as_a_group(world: World) -> None:
    code = flow(
        """
    async def raiser(error): raise error
    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(raiser(ValueError("v")))
            group.create_task(raiser(Own("o", 2)))
    caught = []
    try:
        await step.do("s", work, config={"retries": {"limit": 0, "delay": 0}})
    except* ValueError as group:
        caught.append([str(error) for error in group.exceptions])
    except* Own as group:
        caught.append([error.args for error in group.exceptions])
    async def final():
        async with asyncio.TaskGroup() as group:
            group.create_task(raiser(NonRetryableError("stop")))
    try:
        await step.do("final", final)
    except* NonRetryableError:
        caught.append("final")
    return caught
    """,
        before="class Own(Exception): pass",
    )
    assert await world.run(code) == [["v"], [("o", 2)], "final"]
    assert await world.again() == [["v"], [("o", 2)], "final"]
    assert world.of(messages.AttemptFailed, 1)[-1].attempt == 1


async def test_a_group_of_errors_says_what_is_in_it(world: World) -> None:
    code = flow("""
    async def raiser(error): raise error
    async with asyncio.TaskGroup() as group:
        group.create_task(raiser(ValueError("v")))
        group.create_task(raiser(ExceptionGroup("more", [KeyError(n) for n in range(9)])))
    """)
    with pytest.raises(ExceptionGroup) as raised:
        await world.run(code)
    assert raised.value.message == "unhandled errors in a TaskGroup"
    assert world.ended is not None
    assert world.ended.error is not None
    assert world.ended.error.message == (
        "unhandled errors in a TaskGroup (2 sub-exceptions): ValueError: v; ExceptionGroup: more "
        "(9 sub-exceptions): KeyError: 0; KeyError: 1; KeyError: 2; and 6 more"
    )


@pytest.mark.parametrize(
    "trap",
    [
        "class Trap(Exception, metaclass=Hiding): pass",
        "class Trap(Exception):\n    def __str__(self): raise SystemExit",
        "class Trap(Exception):\n    __class__ = property(lambda self: 1 / 0)",
        "Trap = functools.partial(nested, 5_000)",
    ],
)
async def test_an_error_that_does_not_let_itself_be_read_is_told_all_the_same(
    world: World, trap: str
) -> None:
    before = """
import functools
class Hiding(type):
    def __getattribute__(cls, name): raise RuntimeError(name)
def nested(depth):
    error = ValueError()
    for _ in range(depth): error = ExceptionGroup("g", [error])
    return error
"""
    code = flow(
        """
    def work(): raise Trap()
    caught = []
    try:
        await step.do("s", work, config={"retries": {"limit": 1, "delay": 0}})
    except Exception as error:
        caught.append(type(error).__name__)
    assert caught
    raise Trap()
    """,
        before=before + trap,
    )
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is not the question
        await world.run(code)
    assert [failed.attempt for failed in world.of(messages.AttemptFailed)] == [1, 2]


async def test_a_delay_function_whose_error_cannot_be_read_ends_the_step(world: World) -> None:
    code = flow(
        """
    def work(): raise ValueError("v")
    def delay(ctx, error): raise Trap()
    config = {"retries": {"limit": 1, "delay": delay}}
    await step.do("s", work, config=config)
    """,
        before="class Trap(Exception):\n    def __str__(self): raise SystemExit",
    )
    with pytest.raises(NonRetryableDelayError, match="Trap: "):
        await world.run(code)


async def test_a_config_is_what_it_says_however_often_it_was_seen(world: World) -> None:
    code = flow("""
    config = {"retries": {"limit": 1, "delay": 1}}
    async def work(ctx): return ctx.config.retries.limit
    first = await step.do("s", work, config=config)
    config["retries"]["limit"] = 2
    async def spoil(ctx): ctx.config.retries["limit"] = 9
    await step.do("spoil", spoil, config=config)
    return [first, await step.do("s", work, config=config)]
    """)
    assert await world.run(code) == [1, 2]


async def test_a_message_is_cut_and_a_broken_str_does_no_harm(world: World) -> None:
    code = flow(
        """
    try:
        def work(): raise Broken()
        await step.do("s", work)
    except Exception as error:
        first = type(error).__name__
    try:
        def long(): raise NonRetryableError("é" * 1_000_000)
        await step.do("long", long)
    except NonRetryableError as error:
        return [first, len(str(error).encode())]
    """,
        before="""
class Broken(NonRetryableError):
    def __str__(self): raise RuntimeError("no")
""",
    )
    assert await world.run(code) == ["Broken", 64 * 1024]


@pytest.mark.behaviour(107, 362)
async def test_non_retryable_is_told_by_type_whatever_the_message(world: World) -> None:
    code = flow(
        """
    def work(): raise Mine("")
    try:
        await step.do("s", work)
    except NonRetryableError as error:
        return type(error).__name__
    """,
        before="class Mine(NonRetryableError): pass",
    )
    assert await world.run(code) == "Mine"
    assert [m.error.fatal for m in world.of(messages.AttemptFailed)] == [True]


@pytest.mark.behaviour(112)
async def test_a_value_that_cannot_be_stored_is_final_and_names_step_and_type(
    world: World,
) -> None:
    code = flow("""
    async def work(): return {"a": [object()]}
    try:
        await step.do("make it", work)
    except UnserialisableValueError as error:
        return [error.code, str(error)]
    """)
    code, text = await world.run(code)
    assert code == "value.unserialisable"
    assert 'step "make it"' in text
    assert "object" in text
    assert len(world.of(messages.AttemptFailed)) == 1
    assert await world.again() == [code, text]


@pytest.mark.behaviour(114)
async def test_a_value_above_the_limit_is_final(world: World) -> None:
    await world.load(flow('return await step.do("big", lambda: "x" * 2000)'), value_bytes_max=1000)
    world.start()
    with pytest.raises(ValueTooLargeError, match='step "big"'):
        await world.until_ended()
    assert len(world.of(messages.AttemptFailed)) == 1


@pytest.mark.behaviour(118)
async def test_an_output_that_cannot_be_stored_fails_the_run(world: World) -> None:
    with pytest.raises(UnserialisableValueError, match="output of run"):
        await world.run(flow("return object()"))


@pytest.mark.behaviour(64, 95, 96)
async def test_a_delay_function_is_asked_once_for_each_retry_that_is_left(world: World) -> None:
    code = flow("""
    asked = []
    async def delay(ctx, error):
        asked.append([ctx.attempt, str(error), "delay" in ctx.config.retries])
        return "2 seconds"
    def work(): raise ValueError("no")
    try:
        await step.do("s", work, config={"retries": {"limit": 2, "delay": delay}})
    except ValueError:
        return asked
    """)
    assert await world.run(code) == [[1, "no", False], [2, "no", False]]
    assert [m.delay_ms for m in world.of(messages.AttemptFailed)] == [2000, 2000, None]
    config = msgspec.json.decode(world.of(messages.StepRequest)[0].config)
    assert config["retries"]["delay_ms"] is None


@pytest.mark.parametrize(
    "delay", ["lambda ctx, error: 1 / 0", 'lambda ctx, error: "soon"', "lambda ctx, error: -1",
              "lambda: 5", "lambda ctx, error: float('nan')", "broken"]
)  # fmt: skip
@pytest.mark.behaviour(97)
async def test_a_broken_delay_function_fails_the_step_at_once(world: World, delay: str) -> None:
    code = flow(f"""
    async def broken(ctx, error): raise RuntimeError("x")
    def work(): raise ValueError("no")
    await step.do("s", work, config={{"retries": {{"limit": 2, "delay": {delay}}}}})
    """)
    with pytest.raises(NonRetryableDelayError, match='step "s"'):
        await world.run(code)
    assert len(world.of(messages.AttemptFailed)) == 1


async def test_a_delay_function_that_hangs_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamic_workflows.loaders.guest.attempt.DELAY_FUNCTION_S", 0.01)
    code = flow("""
    async def delay(ctx, error): await asyncio.Event().wait()
    async def work(): raise ValueError("no")
    await step.do("s", work, config={"retries": {"limit": 2, "delay": delay}})
    """)
    with pytest.raises(NonRetryableDelayError, match="longer than"):
        await world.run(code)


async def test_a_cancelled_attempt_ends_and_is_heard_no_more(world: World) -> None:
    code = flow("""
    async def work(ctx):
        if ctx.attempt == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                print("cancelled")
                return "too late"
        return "second"
    return await step.do("s", work)
    """)
    await world.load(code)
    life = world.start()
    await world.until(lambda: world.attempts.get(("do", "s", 1)) == 1)
    await asyncio.sleep(0)
    token = world.of(messages.StepRequest)[0].token
    world.send(messages.Cancel(token, 1), life)
    await world.until(lambda: "cancelled" in world.printed)
    await world.until_idle()
    world.go(("do", "s", 1))
    assert await world.until_ended() == "second"
    assert [m.attempt for m in world.of(messages.Done)] == [2]


async def test_a_cancel_of_an_attempt_that_is_over_changes_nothing(world: World) -> None:
    await world.load(flow('return await step.do("s", lambda: 1)'))
    life = world.start()
    await world.until(lambda: bool(world.of(messages.StepRequest)))
    token = world.of(messages.StepRequest)[0].token
    world.send(messages.Cancel(token, 1), life)
    world.send(messages.Cancel(99, 1), life)
    assert await world.until_ended() == 1


async def test_a_step_is_over_when_the_one_that_awaits_it_is_cancelled(world: World) -> None:
    code = flow("""
    gate = asyncio.Event()
    async def work():
        await gate.wait()
        return 5
    task = asyncio.create_task(step.do("s", work))
    await step.do("let it start", lambda: 1)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    gate.set()
    return await step.do("last", lambda: "end")
    """)
    assert await world.run(code) == "end"
    done = [m.value for m in world.of(messages.Done)]
    assert b"5" not in done
    assert [m.name for m in world.of(messages.Cancelled)] == ["s"]
    assert await world.again() == "end"
    assert world.of(messages.StepRequest) == []


@pytest.mark.behaviour(68, 249)
async def test_parallel_steps_of_one_name_count_in_the_order_of_calls(world: World) -> None:
    code = flow("""
    async def work(ctx): return ctx.step.count
    calls = [step.do("s", work) for _ in range(5)]
    return await asyncio.gather(*reversed(calls))
    """)
    assert await world.run(code) == [5, 4, 3, 2, 1]


@pytest.mark.behaviour(70)
async def test_counters_of_the_kinds_are_independent(world: World) -> None:
    await world.load(
        flow("""
    async def work(ctx): return ctx.step.count
    await step.do("x", work)
    await step.sleep("x", 1)
    await step.wait_for_event("x", "t")
    return await step.do("x", work)
    """)
    )
    world.start()
    await world.until(lambda: bool(world.of(messages.Sleep)))
    world.finish("x")
    await world.until(lambda: bool(world.of(messages.Wait)))
    world.deliver("x", 1)
    assert await world.until_ended() == 2
    assert [m.count for m in (*world.of(messages.Sleep), *world.of(messages.Wait))] == [1, 1]


async def test_a_sync_callback_runs_in_a_thread_where_threads_are_allowed(world: World) -> None:
    code = flow("""
    import threading
    main = threading.get_ident()
    def plain(ctx): return threading.get_ident() == main
    async def coroutine(): return threading.get_ident() == main
    return [await step.do("a", plain), await step.do("b", coroutine)]
    """)
    await world.load(code, threads=True)
    world.start()
    assert await world.until_ended() == [False, True]


@pytest.mark.behaviour(153, 366)
async def test_an_event_has_attributes_and_keys(world: World) -> None:
    await world.load(
        flow("""
    got = await step.wait_for_event("w", "approved", timeout=None)
    return [got.payload, got["payload"], got.type, got.timestamp.isoformat()]
    """)
    )
    world.start()
    await world.until(lambda: bool(world.of(messages.Wait)))
    world.deliver("w", {"by": "ada"}, "approved")
    by = {"by": "ada"}
    assert await world.until_ended() == [by, by, "approved", "1970-01-01T00:00:01+00:00"]
    assert world.of(messages.Wait)[0].timeout_ms == 86_400_000


@pytest.mark.behaviour(139)
async def test_sleeps_say_how_long_or_until_when(world: World) -> None:
    await world.load(
        flow("""
    import datetime
    when = datetime.datetime(2030, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    await step.sleep("a", "1.5 minutes")
    await step.sleep("zero", 0)
    await step.sleep_until("b", when)
    await step.sleep_until("c", 1_893_456_000_000)
    """)
    )
    world.start()
    for name in ("a", "zero", "b", "c"):
        await world.until(lambda name=name: any(key[1] == name for key in world.open))  # type: ignore[misc]
        world.finish(name)
    await world.until_ended()
    sleeps = world.of(messages.Sleep)
    assert [m.duration_ms for m in sleeps] == [90_000, 0, None, None]
    assert [m.until_us for m in sleeps] == [None, None, *[1_893_456_000_000_000] * 2]
    assert sleeps[0].at == "index.py:13"


async def test_an_answered_error_is_raised_as_its_class(world: World) -> None:
    await world.load(flow('await step.sleep_until("far", 1_800_000_000_000)'))
    world.start()
    await world.until(lambda: bool(world.of(messages.Sleep)))
    world.finish("far", error=ValueError("that is too far"))
    with pytest.raises(ValueError, match="that is too far"):
        await world.until_ended()


async def test_a_mocked_step_is_answered_without_its_callback(world: World) -> None:
    await world.load(flow('return await step.do("s", lambda: print("ran"))'))
    world.before_go = lambda key, attempt: False
    life = world.start()
    await world.until(lambda: bool(world.of(messages.StepRequest)))
    world.send(messages.StepOutcome(world.of(messages.StepRequest)[0].token, b'"mock"'), life)
    assert await world.until_ended() == "mock"
    assert world.printed == []


@pytest.mark.behaviour(255)
async def test_nested_steps_are_steps_and_say_where_they_stand(world: World) -> None:
    code = flow("""
    async def outer():
        return await step.do("inner", lambda: 1) + 1
    return await step.do("outer", outer)
    """)
    assert await world.run(code) == 2
    assert [m.at for m in world.of(messages.StepRequest)] == [
        "index.py:13",
        "index.py:12 in step 'outer' 1",
    ]
    world_again = await world.again()
    assert world_again == 2
    assert world.of(messages.StepRequest) == []


@pytest.mark.behaviour(36)
async def test_run_that_raises_what_is_no_exception_still_ends(world: World) -> None:
    with pytest.raises(StepError) as caught:
        await world.run(flow("raise SystemExit(3)"))
    assert caught.value.name == "SystemExit"


async def test_a_missing_class_ends_the_run_with_the_reason(world: World) -> None:
    with pytest.raises(WorkflowFatalError, match="'Flow'"):
        await world.run("x = 1")


def ms(config: bytes) -> Any:
    return msgspec.json.decode(config)


@pytest.mark.behaviour(83)
async def test_configs_are_normalised(world: World) -> None:
    await world.run(
        flow("""
        from dynamic_workflows import StepConfig
        await step.do("a", lambda: 1)
        await step.do("b", lambda: 1, config={"timeout": "1 hour", "sensitive": "output"})
        await step.do("c", lambda: 1, config=StepConfig(lost="fail", timeout=5))
        await step.do("d", lambda: 1, config={"retries": {"limit": 0, "delay": 0}})
        await step.do("e", lambda: 1, rollback=print, rollback_config={"timeout": 9})
        await step.do("f", lambda: 1, config={"retries": {"limit": 0}})
        """)
    )
    default = {"limit": 5, "delay_ms": 10_000, "backoff": "exponential"}
    a, b, c, d, e, f = world.of(messages.StepRequest)
    assert ms(f.config)["retries"] == {**default, "limit": 0}
    assert ms(a.config) == {"retries": default, "timeout_ms": 600_000}
    assert ms(b.config) == {"retries": default, "timeout_ms": 3_600_000, "sensitive": "output"}
    assert ms(c.config) == {"retries": default, "timeout_ms": 5, "lost": "fail"}
    assert ms(d.config)["retries"] == {"limit": 0, "delay_ms": 0, "backoff": "exponential"}
    assert (a.has_rollback, e.has_rollback) == (False, True)
    assert ms(e.rollback_config) == {"retries": default, "timeout_ms": 9}


@pytest.mark.behaviour(109)
async def test_non_retryable_and_others_leave_run_as_they_are(world: World) -> None:
    with pytest.raises(NonRetryableError, match="stop"):
        await world.run(flow('raise NonRetryableError("stop")'))
