"""A full disk: callers are told at once, nothing is lost, and all goes on by itself after it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults import FaultDisk
from local_world import World, add_call, until
from patience_limits import SOON_S
from ray_world import expected, loader_of

import dynamic_workflows as dw
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.actors.placement.wiring import may_go_on
from dynamic_workflows.actors.rpc.actor_settings import Setup
from dynamic_workflows.actors.rpc.client import TenantClient
from dynamic_workflows.actors.timers.open_registration import OpenRegistration
from dynamic_workflows.eventlog.errors import Unavailable, needs_operator
from dynamic_workflows.eventlog.store.base import can_write
from dynamic_workflows.eventlog.store.filesystem import explain
from dynamic_workflows.eventlog.store.local import LocalStore

"""Generous; a call that waited for its limit would take longer (the limit is 600 s)."""


def full(code: int = errno.ENOSPC) -> Unavailable:
    error = explain(OSError(code, os.strerror(code)), "/log/wal")
    assert isinstance(error, Unavailable)
    return error


@pytest.mark.parametrize(
    ("code", "words", "needs"),
    [
        (errno.ENOSPC, "/log/wal: No space left on device: free some space", True),
        (errno.EDQUOT, "/log/wal: Disk quota exceeded: free some space", True),
        (errno.EROFS, "/log/wal: Read-only file system: mount it for writing", True),
        (errno.EIO, "/log/wal: Input/output error: check the disk", False),
        (errno.EMFILE, "/log/wal: Too many open files: check", False),
    ],
)
def test_an_error_of_the_disk_says_where_what_and_what_to_do(
    code: int, words: str, needs: bool
) -> None:
    assert str(full(code)).startswith(words)
    assert needs_operator(full(code)) is needs


# --- the loader, the slots and the timer


def client_of(world: World) -> TenantClient:
    return TenantClient("acme", client_id="c", resolve=world.loader.resolve, timeout_s=600)


async def add(client: TenantClient, token: str) -> Any:
    async with asyncio.timeout(SOON_S):
        return await client.call(add_call(token))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_each_call_is_told_at_once_and_the_tenant_keeps_its_one_slot(code: int) -> None:
    world = await World().start()
    world.unopenable["acme"] = full(code)
    client = client_of(world)
    for number in range(5):
        with pytest.raises(Unavailable, match=os.strerror(code)):
            await add(client, str(number))
    assert not world.killed
    world.unopenable.clear()
    assert await add(client, "freed") == 1
    await world.stop()


async def test_a_tenant_is_opened_by_itself_when_there_is_space_though_nobody_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamic_workflows.actors.placement.loader.CHECK_S", 0.01)
    world = await World().start()
    world.unopenable["acme"] = full()
    answer = await world.loader.wake(["acme"])
    assert (answer.refused, list(answer.not_yet)) == ({}, ["acme"])
    assert "No space left" in answer.not_yet["acme"]
    await asyncio.sleep(0.05)
    assert not world.opened
    world.unopenable.clear()
    await until(lambda: world.opened == ["acme"], what="the opening")
    await until(lambda: (world.timer._index.get("acme")) == -1, what="the listing")
    assert (await world.loader.wake(["acme"])).not_yet == {}
    await world.stop()


async def test_a_timer_whose_log_takes_nothing_tells_who_opens_a_tenant() -> None:
    class Full:
        name = "timer"

        async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
            raise full()

    async def find() -> Any:
        return Full()

    async with asyncio.timeout(SOON_S):
        with pytest.raises(Unavailable, match="No space left"):
            await OpenRegistration("acme", find).confirmed(1)


async def test_a_slot_that_is_not_ready_does_not_stop_the_loader_from_looking_at_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamic_workflows.actors.placement.loader.CHECK_S", 0.01)
    world = await World().start()
    peer = await world.home("acme")

    class NotReady:
        async def who(self, *args: Any) -> Any:
            raise Unavailable("it is only being opened")

        assign = who

    world.slots[peer.name].target = NotReady()
    await until(lambda: world.opened == ["acme", "acme"], what="another slot")
    await world.stop()


async def test_an_actor_goes_on_when_its_disk_takes_bytes_again(tmp_path: Path) -> None:
    disk = FaultDisk()
    store = LocalStore(tmp_path, disk=disk)
    disk.fail("pwrite", errno.ENOSPC)
    assert not await can_write(store)
    disk.mend()
    assert await can_write(store)
    assert await store.list("probe/") == []
    assert await may_go_on(Setup(str(tmp_path), dw.PlatformConfig(), "n"), full())
    nowhere = Setup("/proc/nowhere", dw.PlatformConfig(), "n")
    assert not await may_go_on(nowhere, full())
    assert await may_go_on(nowhere, full(errno.EIO))
    await store.close()


# --- a whole platform in one process

CODES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE]


def fail_writes(disk: FaultDisk, code: int) -> None:
    for call in ("open_tmpfile", "allocate", "pwrite", "replace"):
        disk.fail(call, code)


@pytest.mark.parametrize("code", CODES)
async def test_nothing_acknowledged_is_lost_and_all_goes_on_when_there_is_space(
    tmp_path: Path, code: int
) -> None:
    disk = FaultDisk()
    store = LocalStore(tmp_path, disk=disk)
    local = LocalPlatform(load=loader_of(), store=store)

    async def start() -> LocalPlatform:
        return local

    async with asyncio.timeout(3 * SOON_S), dw.Platform(start, log=store) as platform:
        acme, newco = platform.tenant("acme").workflows, platform.tenant("newco").workflows
        ended = await acme.create(id="ended", params={"steps": 1})
        assert await ended.result() == expected("ended", 1)
        waiting = await acme.create(id="waiting", params={"steps": 1, "wait": True})
        sleeping = await acme.create(id="sleeping", params={"steps": 2, "sleep": "1 hour"})
        await local.clock.advance("1 second")
        fail_writes(disk, code)
        calls: list[Callable[[], Any]] = [
            partial(acme.create, id="refused"),
            partial(newco.create, id="refused"),
            partial(waiting.send_event, "approved", "too early"),
            waiting.terminate,
            partial(platform.tenant("acme").deploy, dw.WorkerCode("m.py", {"m.py": "pass"})),
        ]
        for call in 2 * calls:
            with pytest.raises(Unavailable, match=str(tmp_path)) as caught:
                await call()
            assert caught.value.details["errno"] == code
        for read in (ended.status, ended.result, ended.history):
            outcome = (await asyncio.gather(read(), return_exceptions=True))[0]
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, Unavailable)
                assert outcome.details["errno"] == code
        await local.clock.advance("2 hours")
        disk.mend()
        await waiting.send_event("approved", "at last")
        assert (await waiting.result())["done"] == [0, "at last"]
        slept = asyncio.ensure_future(sleeping.result())
        while not slept.done():
            await local.clock.advance("1 hour")
            await asyncio.sleep(0.01)  # a real disk takes real time
        assert slept.result() == expected("sleeping", 2)
        assert await ended.result() == expected("ended", 1)
        names = [event.step for event in await sleeping.history() if event.type == "step_completed"]
        assert sorted(map(str, names)) == ["step 0", "step 1"]
        assert await (await newco.create(id="refused", params={"steps": 1})).result()


# --- real Ray on a real disk
