"""Isolates without walls live and die on systems that have nothing of what Linux alone has."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from dynamic_workflows.loaders import kernel
from dynamic_workflows.loaders.syscalls import SYSCALLS

TESTS = Path(__file__).resolve().parent


async def elsewhere(*arguments: str) -> str:
    """What a program of Python prints on another host; errors fail the test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(TESTS / "other_host.py"), *arguments),
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output
    return output


pytestmark = pytest.mark.skipif(
    not kernel.IS_LINUX or kernel.MACHINE not in SYSCALLS,
    reason="where nothing can be taken away from the system, it is what it is",
)


async def test_the_other_host_has_nothing_of_what_it_must_not_have() -> None:
    program = """
import other_host
import ctypes, errno, os, select, selectors, socket, sys, time
assert sys.platform != "linux" and not hasattr(os, "memfd_create") and not hasattr(select, "epoll")
assert not hasattr(ctypes.CDLL(None), "prctl")
assert selectors.DefaultSelector().__class__.__name__ == "PollSelector"
from dynamic_workflows.loaders import kernel
tries = (
    lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    lambda: time.clock_gettime((~os.getpid() << 3) | 2),
    lambda: kernel.prctl(4, 0),
    lambda: kernel.open_pidfd(os.getpid()),
    lambda: kernel.memory_file("x"),
)
for number, attempt in enumerate(tries):
    try:
        attempt()
    except OSError:
        continue
    raise AssertionError(number)
socket.socketpair()
assert time.clock_gettime(time.CLOCK_MONOTONIC) > 0
print("nothing")
"""
    assert "nothing" in await elsewhere("-c", program)


async def test_isolates_start_work_keep_their_limits_and_end_as_on_linux() -> None:
    output = await elsewhere(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"),
        str(TESTS / "test_process.py"),
    )
    passed = re.search(r"(\d+) passed, (\d+) skipped", output)
    assert passed, output
    assert int(passed[1]) >= 38, output
    assert int(passed[2]) <= 7, output


async def test_walls_are_refused_there_in_words_that_help() -> None:
    program = """
import asyncio, other_host
from isolates import isolates
from dynamic_workflows.eventlog.errors import SandboxUnavailable
from dynamic_workflows.loaders.isolate import Isolation
async def main():
    try:
        async with isolates(Isolation()):
            print("no refusal")
    except SandboxUnavailable as error:
        print(error.message)
asyncio.run(main())
"""
    reason = await elsewhere("-c", program)
    assert "refusing to run tenant code" in reason
    assert "Linux container" in reason
    assert "unsafe-none" in reason
