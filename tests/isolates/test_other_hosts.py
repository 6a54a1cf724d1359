"""Isolates without walls live and die on systems that have nothing of what Linux alone has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from elsewhere import elsewhere, passing_elsewhere

from dynamic_workflows.actors.cluster import orphan_reaper
from dynamic_workflows.eventlog.store import filesystem
from dynamic_workflows.loaders.sandbox import linux
from dynamic_workflows.loaders.sandbox.syscall_numbers import SYSCALLS

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


async def test_tenants_and_logs_do_their_work_there() -> None:
    passed, _ = await passing_elsewhere(
        *("tests/isolates/test_isolate_limits.py", "tests/unit/eventlog/wal/test_wal_local.py"),
        *("-k", "guilty or one_write or unnamed or fenced"),
    )
    assert passed >= 7


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
