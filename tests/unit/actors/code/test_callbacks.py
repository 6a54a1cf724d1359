"""What the platform's owner wrote may end in any way: who called it lives on and hears of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.code.callbacks import CallbackEndedError, Callbacks

INDEX = """
from dynamic_workflows import WorkflowEntrypoint

ONCE = {"retries": {"limit": 0, "delay": 0}}

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        try:
            return await step.do("call", self.env.GRANTED.end, config=ONCE)
        except Exception as error:
            return str(error)
"""
ENDINGS: list[type[BaseException]] = [
    SystemExit,
    KeyboardInterrupt,
    asyncio.CancelledError,
    StopIteration,
    ValueError,
]


def raising(ending: type[BaseException], *, is_async: bool) -> Callable[..., Any]:
    def sync(*_: Any) -> Any:
        raise ending("the end")

    async def async_(*_: Any) -> Any:
        raise ending("the end")

    return async_ if is_async else sync


@pytest.mark.parametrize("in_threads", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_whatever_a_callback_raises_arrives_as_an_exception(
    ending: type[BaseException], is_async: bool, in_threads: bool
) -> None:
    callbacks = Callbacks(timeout_s=30, in_threads=in_threads)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await callbacks.answer_of(raising(ending, is_async=is_async))
    if not issubclass(ending, Exception):
        assert isinstance(caught.value, CallbackEndedError)
        assert ending.__name__ in str(caught.value)


async def test_a_cancellation_from_outside_stays_one() -> None:
    asked = asyncio.ensure_future(Callbacks(timeout_s=30).answer_of(asyncio.sleep, 60))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_a_sync_callback_that_blocks_holds_up_nobody_else() -> None:
    callbacks, may_go_on = Callbacks(timeout_s=60, in_threads=True), threading.Event()
    blocked = asyncio.ensure_future(callbacks.answer_of(may_go_on.wait, 60))
    assert await callbacks.answer_of(lambda: asyncio.sleep(0, "answered")) == "answered"
    assert not blocked.done()
    may_go_on.set()
    assert await blocked


async def test_an_object_that_is_called_with_await_stays_on_the_loop() -> None:
    class Loader:
        async def __call__(self) -> int:
            return threading.get_ident()

    callbacks = Callbacks(in_threads=True)
    assert await callbacks.answer_of(Loader()) == threading.get_ident()
    assert await callbacks.answer_of(threading.get_ident) != threading.get_ident()


async def test_a_callback_that_hangs_fails_when_its_time_is_up() -> None:
    with pytest.raises(TimeoutError, match=r"more than 0\.01 s"):
        await Callbacks(timeout_s=0.01).answer_of(asyncio.sleep, 60)


async def test_a_timeout_of_the_callback_itself_is_told_as_it_was_raised() -> None:
    with pytest.raises(TimeoutError, match="the end"):
        await Callbacks(timeout_s=60).answer_of(raising(TimeoutError, is_async=True))


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_load_that_tries_to_end_the_process_is_a_load_that_failed(
    ending: type[BaseException],
) -> None:
    async def load(tenant_id: str) -> dw.WorkerCode:
        if tenant_id == "bad":
            raise ending("the end")
        return dw.WorkerCode("index.py", {"index.py": INDEX}, env={"GRANTED": Ending()})

    async with testing.connect(load=load) as platform:
        with pytest.raises(dw.CodeError, match=r"load\('bad'\) raised") as caught:
            await platform.tenant("bad").workflows.create(id="one")
        assert caught.value.code == "code.load_failed"
        with pytest.raises(dw.InstanceError):
            await platform.tenant("bad").workflows.get("one")
        await platform.tenant("good").workflows.create(id="one")


class Ending(dw.Service):
    """Takes its whole process with it, as it thinks."""

    async def end(self) -> None:
        raise SystemExit(3)


async def test_a_service_that_tries_to_end_the_process_fails_the_call_alone() -> None:
    def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": INDEX}, env={"GRANTED": Ending()})

    async with testing.connect(load=load, auto_advance=True) as platform:
        instance = await platform.tenant("acme").workflows.create()
        assert "SystemExit" in await instance.result()
