"""Time in the testing kit: what the present is for tenant code, and what real time it takes."""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

HEAD = "import asyncio\nfrom dynamic_workflows import *\n"
ONCE = 'config={"retries": {"limit": 0, "delay": 0}}'


def loading(source: str, **env: Any) -> Callable[[str], Any]:
    async def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode(main_module="index.py", modules={"index.py": HEAD + source}, env=env)

    return load


PRESENT = """
import datetime, time
from datetime import date as day, datetime as moment

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.sleep("rest", "300 days")
        return await step.do("look", self.look)

    async def look(self):
        utc = datetime.timezone.utc
        return [moment.now(utc), datetime.datetime.now().astimezone(utc),
                datetime.datetime.utcnow().replace(tzinfo=utc),
                moment.fromtimestamp(time.time(), utc),
                moment.fromtimestamp(time.time_ns() // 1_000_000_000, utc),
                moment.combine(day.today(), datetime.time(12), utc),
                moment.today().astimezone(utc)]
"""


async def test_tenant_code_lives_in_the_time_of_the_clock_however_it_asks() -> None:
    start = datetime.datetime(2031, 5, 17, 12, tzinfo=UTC)
    connection = testing.connect(load=loading(PRESENT), auto_advance=True, start=start)
    async with connection as platform:
        instance = await platform.tenant("acme").workflows.create()
        seen = await instance.result()
        for moment in seen:
            assert abs(moment - (start + timedelta(days=300))) < timedelta(hours=25), seen
        assert seen[0] == seen[1] == seen[2] == seen[3] == seen[6] == platform.clock.now()


async def test_the_clock_starts_at_the_present_and_the_test_has_its_own_time() -> None:
    async with testing.connect(load=loading(PRESENT)) as platform:
        assert abs(platform.clock.now() - datetime.datetime.now(UTC)) < timedelta(minutes=5)
        await platform.clock.advance("10 days")
        assert datetime.datetime.now(UTC) < platform.clock.now() - timedelta(days=9)


KINDS = """
import copy, datetime, pickle, time
from dataclasses import dataclass
from datetime import datetime as moment
from typing import Optional
from pydantic import BaseModel

class Deadline(BaseModel):
    at: moment
    day: Optional[datetime.date] = None

@dataclass
class Span:
    since: moment
    until: datetime.datetime

class Stamp(moment):
    pass

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        now = await step.do("now", self.now)
        assert isinstance(now, moment) and isinstance(now, datetime.date)
        assert issubclass(moment, datetime.date) and moment == type(now)
        assert not isinstance(now.date(), moment) and isinstance(now.date(), datetime.date)
        assert pickle.loads(pickle.dumps(now)) == now == copy.deepcopy(now)
        assert pickle.loads(pickle.dumps(moment)) == moment
        assert isinstance(Stamp.now(), Stamp) and isinstance(Stamp.now(), moment)
        assert moment.fromisoformat(now.isoformat()) == now
        assert moment.strptime("2026", "%Y") == moment(2026, 1, 1)
        deadline = await step.do("model", self.model)
        assert type(deadline) is Deadline and deadline.at == now, deadline
        span = await step.do("span", self.span)
        assert type(span) is Span and span.until - span.since == datetime.timedelta(days=1)
        before = time.monotonic()
        await step.sleep("a minute", "1 minute")
        match now:
            case moment():
                return "whole"

    async def now(self) -> moment:
        return moment.now(datetime.timezone.utc)

    async def model(self) -> Deadline:
        now = moment.now(datetime.timezone.utc)
        return Deadline(at=now, day=now.date())

    async def span(self) -> Span:
        now = datetime.datetime.now(datetime.timezone.utc)
        return Span(now, now + datetime.timedelta(days=1))
"""


@pytest.mark.parametrize("crash", [False, True])
async def test_dates_of_virtual_time_are_dates_like_any_other(crash: bool) -> None:
    connection = testing.connect(load=loading(KINDS), auto_advance=True, crash_at_every_step=crash)
    async with connection as platform:
        instance = await platform.tenant("acme").workflows.create()
        assert await instance.result() == "whole"


NAP = f"""
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("nap", self.nap, {ONCE.replace("}}", '}, "timeout": "3 hours"}')})

    async def nap(self):
        try:
            async with asyncio.timeout(7200):
                await asyncio.sleep(3600)
                return await asyncio.wait_for(asyncio.sleep(7200), 1800)
        except TimeoutError:
            return "woken"
"""


async def test_a_callback_that_sleeps_for_an_hour_does_so_in_virtual_time() -> None:
    async with testing.connect(load=loading(NAP), auto_advance=True) as platform:
        began, real = platform.clock.now(), time.monotonic()
        instance = await platform.tenant("acme").workflows.create()
        assert await instance.result() == "woken"
        took = platform.clock.now() - began
        assert timedelta(minutes=89) < took < timedelta(minutes=91)
        assert time.monotonic() - real < 60


class Hanging(dw.Service):
    """Answers never."""

    async def ask(self) -> None:
        await asyncio.Event().wait()


HANGS = """
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        try:
            await step.do("ask", self.ask)
        except Exception as error:
            return type(error).__name__

    async def ask(self):
        await self.env.BANK.ask()
"""


async def test_days_with_a_call_that_hangs_take_seconds() -> None:
    async with testing.connect(load=loading(HANGS, BANK=Hanging())) as platform:
        instance = await platform.tenant("acme").workflows.create()
        real = time.monotonic()
        await platform.clock.advance("3 days")
        took_s = time.monotonic() - real
        assert (await instance.status()).status == "complete"
        # Each of its attempts was given some real time, and the hundreds of timers after it none.
        assert took_s < 30


SLEEPER = """
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        for day in range(20):
            await step.sleep("day", "1 day")
            await step.do("work", lambda: day)
        return "done"
"""


async def whole_life() -> str:
    async with testing.connect(load=loading(SLEEPER), auto_advance=True) as platform:
        instance = await platform.tenant("acme").workflows.create()
        return str(await instance.result())


async def test_any_number_of_platforms_share_a_loop() -> None:
    async with asyncio.timeout(120):
        assert await asyncio.gather(*(whole_life() for _ in range(5))) == ["done"] * 5


async def test_platforms_within_each_other_go_on() -> None:
    async with asyncio.timeout(120):
        async with testing.connect(load=loading(SLEEPER), auto_advance=True) as outer:
            instance = await outer.tenant("acme").workflows.create()
            waiting = asyncio.ensure_future(instance.result())
            assert await whole_life() == "done"
            assert await waiting == "done"
            assert await whole_life() == "done"


class Inner(dw.Service):
    """Uses a platform of its own to answer."""

    async def ask(self) -> str:
        return await whole_life()


async def test_a_service_may_use_another_platform_of_the_same_loop() -> None:
    async with asyncio.timeout(120):
        source = HANGS.replace("await self.env", "return await self.env").replace(
            "            await step.do", "            return await step.do"
        )
        connection = testing.connect(load=loading(source, BANK=Inner()), auto_advance=True)
        async with connection as platform:
            instance = await platform.tenant("acme").workflows.create()
            assert await instance.result() == "done"


def test_platforms_in_loops_of_several_threads_do_not_meet() -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(asyncio.run(whole_life()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert seen == ["done"] * 3


def test_a_platform_of_another_loop_says_so() -> None:
    with asyncio.Runner() as here:
        connection = testing.connect(load=loading(SLEEPER))
        platform = here.run(connection.__aenter__())
        here.run(platform.tenant("acme").workflows.create())
        with asyncio.Runner() as there, pytest.raises(dw.WorkflowsError, match="loop_scope"):
            there.run(platform.tenant("acme").workflows.create())
        here.run(connection.__aexit__(None, None, None))


STEPS = """
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        for turns in range(3):
            await step.do("work", lambda: turns)
        return "over"
"""


@pytest.mark.parametrize("turns", range(24))
async def test_a_step_result_is_never_missed_whenever_one_begins_to_wait(turns: int) -> None:
    async with testing.connect(load=loading(STEPS)) as platform, asyncio.timeout(60):
        binding = platform.tenant("acme").workflows
        async with testing.introspect_instance(binding, "one") as inside:
            await binding.create(id="one")
            for _ in range(turns):
                await asyncio.sleep(0)
            for index in (3, 1, 2):
                assert (
                    await inside.wait_for_step_result({"name": "work", "index": index}) == index - 1
                )
            await inside.wait_for_status("complete")


class Listening(dw.Service):
    """A tail that keeps what it is told."""

    heard: list[tuple[str, str]] = []

    async def tail(self, records: list[Any]) -> None:
        for record in records:
            self.heard.append((record["level"], record["text"]))


LOGS = """
import logging
log = logging.getLogger(__name__)

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("talk", self.talk)

    async def talk(self):
        print("printed")
        log.info("informed %s", 1)
        logging.warning("warned")
        logging.getLogger("shop.orders").error("failed")
        log.debug("silent")
"""


async def test_what_tenant_code_logs_reaches_tails_as_from_an_isolate() -> None:
    Listening.heard.clear()
    code = dw.WorkerCode(
        main_module="index.py", modules={"index.py": HEAD + LOGS}, tails=(Listening(),)
    )
    async with testing.connect() as platform:
        await platform.tenant("acme").deploy(code)
        instance = await platform.tenant("acme").workflows.create()
        await instance.result()
        await platform.clock.settle()
    assert Listening.heard == [
        ("info", "printed"),
        ("info", "informed 1"),
        ("warning", "warned"),
        ("error", "failed"),
    ]
