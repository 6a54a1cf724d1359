"""Forked children of a connected program: refused at once, and they end nothing of its."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paths import SUPPORT

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import orphan_reaper
from dynamic_workflows.actors.cluster.driver import Order, RayPlatform
from dynamic_workflows.actors.cluster.embedded_ray import RayThread
from dynamic_workflows.actors.cluster.ray_session import RaySession
from dynamic_workflows.actors.cluster.runtime_folder import RuntimeFolder
from dynamic_workflows.actors.rpc import fork_guard
from dynamic_workflows.actors.rpc.client import TenantClient
from dynamic_workflows.actors.rpc.reconnecting import ReconnectingRef
from dynamic_workflows.actors.settings.platform_config import PlatformConfig
from dynamic_workflows.loaders.protocol.calls import AwaitResult, GetInstance

PROGRAM = """
import asyncio, os, signal, sys, time
import dynamic_workflows as dw
sys.path.insert(0, {tests!r})
from ray_world import expected, loader_of

async def child(platform, tenant, binding):
    began = time.monotonic()
    assert platform.query("SELECT count(*) AS n FROM instances").to_pylist() == [{{"n": 1}}]
    for call in (
        lambda: binding.create(params={{"steps": 1}}),
        lambda: platform.tenant("acme").deploy(dw.WorkerCode("i.py", {{"i.py": ""}})),
        lambda: tenant.why("n-1"),
        lambda: dw.connect({log!r}, take_over=True).__aenter__(),
    ):
        try:
            await call()
        except dw.PlatformBusy as error:
            assert f"forked from process {{os.getppid()}}" in str(error), error
        else:
            raise AssertionError("not refused")
    async with platform:
        pass
    assert time.monotonic() - began < 5.0

def fork(platform, tenant, binding):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(20)
    try:
        asyncio.run(child(platform, tenant, binding))
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.exit(1)
    sys.exit(7)

loop = asyncio.new_event_loop()

async def enter():
    config = dw.PlatformConfig(isolation="unsafe-none", pool_size=1)
    platform = await dw.connect({log!r}, load=loader_of(), config=config)
    tenant = platform.tenant("acme")
    one = await tenant.workflows.create(id="n-1", params={{"steps": 1}})
    assert await one.result(timeout=60) == expected("n-1", 1)
    return platform, tenant, tenant.workflows

async def leave(platform, binding):
    two = await binding.create(id="n-2", params={{"steps": 1}})
    assert await two.result(timeout=60) == expected("n-2", 1)
    await platform.close()

platform, tenant, binding = loop.run_until_complete(enter())
pid = fork(platform, tenant, binding)
forked = time.monotonic()
_, status = os.waitpid(pid, 0)
print("child", os.waitstatus_to_exitcode(status), time.monotonic() - forked < 10.0, flush=True)
sleeper = os.fork()
if not sleeper:
    signal.alarm(60)
    signal.pause()
closing = time.monotonic()
loop.run_until_complete(leave(platform, binding))
print("closed", time.monotonic() - closing < 15.0, flush=True)
print("spared", os.waitpid(sleeper, os.WNOHANG) == (0, 0), flush=True)
os.kill(sleeper, signal.SIGKILL)
os.waitpid(sleeper, 0)
"""


@pytest.mark.ray
def test_a_forked_child_is_refused_exits_as_it_says_and_its_parent_serves_on(
    tmp_path: Path,
) -> None:
    code = PROGRAM.format(tests=str(SUPPORT), log=str(tmp_path / "log"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stdout.splitlines()
    assert said == ["child 7 True", "closed True", "spared True"], done.stderr
    assert done.returncode == 0
    assert list((tmp_path / "log" / "platform").glob("*.json")) == []


@pytest.fixture
def fork(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes this process look like a child of itself."""
    parent = os.getpid()
    return lambda: monkeypatch.setattr(os, "getpid", lambda: parent + 1)


async def never(*_: Any) -> Any:
    raise AssertionError("a forked child looks for an actor")


async def test_a_client_that_was_made_before_the_fork_refuses_every_call_at_once(fork: Any) -> None:
    client = TenantClient("acme", client_id="c", resolve=never, timeout_s=30.0)
    peer = ReconnectingRef("the loader actor", never, timeout_s=30.0)
    fork()
    for call in (
        client.call(GetInstance(id="i")),
        client.call(AwaitResult(id="i")),
        peer.call("stats"),
    ):
        with pytest.raises(dw.PlatformBusy, match="was forked from process .*connect after"):
            await call


async def test_a_platform_that_is_closed_in_a_forked_child_keeps_its_session_and_its_claim(
    tmp_path: Path, fork: Any
) -> None:
    cluster = RayPlatform(Order(str(tmp_path), None, None, None, "n", PlatformConfig()))
    session = cluster._session = RaySession(is_elsewhere=False, is_embedded=True)
    session.use(cluster._order.platform)
    session._ray = RayThread(lambda folder: None, lambda: None, has_folder=False)
    await session._ray.start()
    fork()
    with pytest.raises(dw.PlatformBusy):
        cluster.calls("acme")
    await cluster.close()
    assert cluster._session is session
    assert not session.release(cluster._order.platform)
    await session.end()
    await session._ray.stop()
    assert session._ray._thread.is_alive()
    session._ray._stop.set()


def test_a_forked_child_lets_go_of_the_reaper_which_spares_it() -> None:
    folder = RuntimeFolder()
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        signal.pause()
    try:
        # On a busy machine the child gets to run later than its parent.
        while pid not in orphan_reaper.guests(str(folder.path)):
            time.sleep(0.01)
        began = time.monotonic()
        folder.remove()
        assert time.monotonic() - began < 20.0
        assert not folder.path.exists()
        assert fork_guard._letting_go.count(folder._let_go) == 0
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
