"""Programs that share a log: they join the platform that is at work on it, and outlive it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joining import CONFIG
from paths import SUPPORT
from ray_world import eventually, expected, is_alive

import dynamic_workflows as dw
from dynamic_workflows.actors.claims import Claims
from dynamic_workflows.actors.cluster.signal_handlers import SIGNALS, action_of
from dynamic_workflows.eventlog.store.open_store import open_store

pytestmark = pytest.mark.ray

OWNER = """
import asyncio, sys
import dynamic_workflows as dw
sys.path.insert(0, {tests!r})
from ray_world import loader_of
from joining import CONFIG

async def main():
    async with dw.connect({log!r}, load=loader_of(), config=CONFIG, load_version="1.9") as platform:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another program with an embedded platform on the log."""
    code = OWNER.format(tests=str(SUPPORT), log=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def command(log: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "dynamic_workflows.cli", *arguments, "--log", str(log)]
    return subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)


def actions() -> dict[str, bytes]:
    """The handlers of this process: the first field of what the system tells."""
    told = {name: action_of(getattr(signal, name)) for name in SIGNALS}
    return {name: action[:8] for name, action in told.items() if action is not None}


async def run_one(platform: dw.Platform, name: str) -> Any:
    instance = await platform.tenant("acme").workflows.create(id=name, params={"steps": 1})
    return await instance.result(timeout=100)


async def test_a_guest_shares_the_platform_is_told_whose_load_rules_and_goes_on_when_it_is_killed(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    claims = Claims(open_store(tmp_path))
    held = await claims.at_work()
    assert held is not None
    assert held.claim.pid == owner.pid
    signals = actions()
    with pytest.warns(dw.LoadReplacedWarning, match=f"process {owner.pid} .*'1.9'"):
        connecting = await dw.connect(
            tmp_path, load=lambda tenant_id: None, config=CONFIG, load_version="1.8"
        )
    async with connecting as guest:
        assert actions() == signals
        assert await run_one(guest, "n-1") == expected("n-1", 1)
        params = {"steps": 1, "wait": True}
        waiting = await guest.tenant("acme").workflows.create(id="w", params=params)
        looked = await asyncio.to_thread(command, tmp_path, "why", "acme", "w")
        assert "approved" in looked.stdout
        steered = await asyncio.to_thread(
            command, tmp_path, "send-event", "acme", "w", "--type", "approved"
        )
        assert (steered.returncode, steered.stderr) == (0, "")
        assert (await waiting.result(timeout=60))["id"] == "w"

        os.kill(owner.pid, signal.SIGKILL)
        await eventually(lambda: not is_alive(owner.pid), what="the end of the owner")
        # Its code was held by the log, and the guest's load has to answer for new instances.
        assert (await waiting.result(timeout=100))["id"] == "w"

        # The old actor may have answered, a moment before it ended as well.
        async def is_ours() -> bool:
            held = await claims.at_work()
            return held is not None and held.claim.pid == os.getpid()

        await eventually(is_ours, what="a platform of this process")
        await eventually(lambda: actions() == signals, what="the program's own handlers")
    assert actions() == signals
    assert await claims.at_work() is None
