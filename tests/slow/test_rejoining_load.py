"""A driver that joins again by itself does not roll back one that was started with newer code."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from joining import CONFIG
from paths import SUPPORT
from ray_world import eventually, is_alive

import dynamic_workflows as dw
from dynamic_workflows import WorkerCode

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return {name!r}
"""

OWNER = """
import asyncio, sys
import dynamic_workflows as dw
sys.path.insert(0, {tests!r})
from joining import CONFIG

def load(tenant_id):
    return dw.WorkerCode("index.py", {{"index.py": {code!r}}})

async def main():
    async with dw.connect({log!r}, load=load, config=CONFIG, load_version={version!r}) as platform:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def start(log: Path, name: str, version: str | None) -> subprocess.Popen[str]:
    """A program whose `load` answers code that returns a name."""
    script = OWNER.format(
        tests=str(SUPPORT), log=str(log), code=CODE.format(name=name), version=version
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"


async def ended(pid: int) -> None:
    await eventually(lambda: not is_alive(pid), what="the end of the owner")


@pytest.mark.parametrize("version", [None, "1.9"])
@pytest.mark.filterwarnings("ignore::dynamic_workflows.LoadReplacedWarning")
async def test_the_owner_that_is_started_again_rules_whoever_is_back_first(
    tmp_path: Path, version: str | None
) -> None:
    def load(tenant_id: str) -> WorkerCode:
        return WorkerCode("index.py", {"index.py": CODE.format(name="guest")})

    first = start(tmp_path, "first", version)
    later: list[subprocess.Popen[str]] = []
    try:
        await ready(first)
        async with dw.connect(tmp_path, load=load, config=CONFIG, load_version=version) as guest:

            async def who(id: str) -> object:
                instance = await guest.tenant("acme").workflows.create(id=id)
                return await instance.result(timeout=100)

            assert await who("a") == "guest"
            owner = first
            for turn in range(3):
                os.kill(owner.pid, signal.SIGKILL)
                await eventually(
                    lambda pid=owner.pid: not is_alive(pid), what="the end of the owner"
                )
                await asyncio.sleep(turn)  # the guest is back first, or the new owner is
                owner = start(tmp_path, f"again {turn}", version)
                later.append(owner)
                await ready(owner)

                async def is_followed(turn: int = turn) -> bool:
                    return await who(f"b-{turn}-{os.urandom(4).hex()}") == f"again {turn}"

                await eventually(is_followed, what="the newest program's code")
                await asyncio.sleep(3)  # nobody comes back and takes it
                assert await is_followed()
    finally:
        for process in [first, *later]:
            process.kill()
            process.communicate()
