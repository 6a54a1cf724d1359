"""Whose `load` rules after a recovery: an owner comes back with newer code beside an old guest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

DRIVER = '''
import asyncio, logging, sys
import dynamic_workflows as dw

LOG, VERSION, MARK = sys.argv[1], sys.argv[2] or None, sys.argv[3]
SOURCE = f"""
from dynamic_workflows import *

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return {MARK!r}
"""

def loader(source):
    def load(tenant_id):
        return dw.WorkerCode(main_module="index.py", modules={"index.py": source})
    return load

async def main():
    async with dw.connect(LOG, load=loader(SOURCE), load_version=VERSION) as platform:
        print("ready", flush=True)
        while tenant := (await asyncio.to_thread(sys.stdin.readline)).strip():
            instance = await platform.tenant(tenant).workflows.create()
            print("rules", await instance.result(timeout=100), flush=True)

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
asyncio.run(main())
'''


@contextmanager
def driver(log: Path, version: str, mark: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own, connected; it has to end by itself when it is asked to."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(log), version, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    try:
        until(process, "ready")
        yield process
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], *words: str) -> str:
    """The next line that has one of these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if any(word in line for word in words):
            return line.strip()
    raise AssertionError(f"the driver ended before it said {words}")


def asked(process: subprocess.Popen[str], tenant: str) -> str:
    assert process.stdin is not None
    process.stdin.write(f"{tenant}\n")
    process.stdin.flush()
    return until(process, "rules")


@pytest.mark.parametrize(
    ("guest_version", "owner_version", "ruling", "told"),
    [
        ("", "", "new", "that driver connected later, and neither has a load_version"),
        ("1", "1", "new", "that driver connected later, and their load_versions are equal"),
        ("1.9", "1.10", "new", "its load_version '1.9' is lower"),
        ("2", "1", "old", "follows the load of this driver (load_version '2') now"),
    ],
)
def test_an_old_guest_that_comes_back_last_rolls_back_no_restarted_owner(
    tmp_path: Path, guest_version: str, owner_version: str, ruling: str, told: str
) -> None:
    with ExitStack() as drivers:
        first = drivers.enter_context(driver(tmp_path, guest_version, "old"))
        guest = drivers.enter_context(driver(tmp_path, guest_version, "old"))
        guest.send_signal(signal.SIGSTOP)  # so that the restarted owner is back before it
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        owner = drivers.enter_context(driver(tmp_path, owner_version, "new"))
        guest.send_signal(signal.SIGCONT)
        assert told in until(guest, "the load of this driver")
        until(guest, "it goes on")
        assert asked(owner, "acme") == f"rules {ruling}"
        assert asked(guest, "globex") == f"rules {ruling}"
