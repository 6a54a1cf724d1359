"""Isolates without walls live and die on systems that have nothing of what Linux alone has."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from dynamic_workflows.actors.cluster import orphan_reaper
from dynamic_workflows.eventlog.store import filesystem
from dynamic_workflows.loaders.sandbox import linux
from dynamic_workflows.loaders.sandbox.syscall_numbers import SYSCALLS

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
    not linux.IS_LINUX or linux.MACHINE not in SYSCALLS,
    reason="where nothing can be taken away from the system, it is what it is",
)


async def test_the_other_host_has_nothing_of_what_it_must_not_have() -> None:
    program = """
import other_host
import ctypes, errno, os, select, selectors, socket, sys, time
assert sys.platform != "linux" and not hasattr(os, "memfd_create") and not hasattr(select, "epoll")
assert not hasattr(ctypes.CDLL(None), "prctl")
assert selectors.DefaultSelector().__class__.__name__ == "PollSelector"
from dynamic_workflows.actors.cluster import orphan_reaper as reaper
from dynamic_workflows.eventlog.store import filesystem as disk
from dynamic_workflows.loaders.sandbox import linux as kernel
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


async def passing_elsewhere(*arguments: str) -> tuple[int, int]:
    """How many tests passed there, and how many were skipped."""
    output = await elsewhere(
        *("-m", "pytest", "-q", "-p", "other_host", "-p", "no:cacheprovider", "--rootdir", "."),
        *arguments,
    )
    counts = re.findall(r"(\d+) (passed|skipped)", output.splitlines()[-1])
    found = {kind: int(count) for count, kind in counts}
    return found.get("passed", 0), found.get("skipped", 0)


@pytest.mark.slow
async def test_isolates_start_work_keep_their_limits_and_end_as_on_linux() -> None:
    passed, skipped = await passing_elsewhere("tests/test_process.py")
    assert passed >= 38
    assert skipped <= 7


async def test_tenants_and_logs_do_their_work_there() -> None:
    passed, _ = await passing_elsewhere(
        *("tests/test_isolate_limits.py", "tests/test_wal_local.py"),
        *("-k", "guilty or one_write or unnamed or fenced"),
    )
    assert passed >= 7


@pytest.mark.slow
async def test_everything_but_walls_and_reserved_blocks_is_as_on_linux() -> None:
    not_there = (
        "test_isolate_limits.py::test_imports_find_the_bundle_then_what_is_granted_and_nothing_else",
        "test_isolate_limits.py::test_the_walls_that_stand_are_in_the_status_and_the_answer_to_why",
        "test_contract.py::test_tenants_cannot_see_each_other",  # Their SQL needs a sandbox.
        "test_egress.py::test_from_a_real_isolate_the_gateway_is_the_only_way_out",
        "test_recovery.py::test_a_flipped_bit_behind_the_end_is_reported_and_costs_nothing",
        "test_wal_local.py::test_a_closed_log_gives_reserved_blocks_back",
    )
    files = "isolate_limits tails egress contract wal_local log recovery blobs".split()
    passed, _ = await passing_elsewhere(
        *(f"tests/test_{file}.py" for file in files),
        *(f"--deselect=tests/{test}" for test in not_there),
    )
    assert passed > 200


@pytest.mark.skipif(shutil.which("lsof") is None, reason="there is no lsof")
def test_the_reaper_finds_whom_it_has_to_end_without_proc(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w"):
        assert os.getpid() in orphan_reaper.listed(str(tmp_path))
    assert os.getpid() not in orphan_reaper.listed(str(tmp_path))


def test_a_file_system_without_a_full_sync_gets_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(filesystem, "_FULL_SYNC", 0x7FFF)  # a command that no system knows
    monkeypatch.setattr(filesystem, "_datasync", synced.append)
    with open(tmp_path / "file", "wb") as file:
        filesystem.Disk().datasync(file.fileno())
        assert synced == [file.fileno()]


async def test_walls_are_refused_there_in_words_that_help() -> None:
    program = """
import asyncio, other_host
from isolates import isolates
from dynamic_workflows.eventlog.errors import SandboxUnavailable
from dynamic_workflows.loaders.isolates.interface import Isolation
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
