"""Claims: who is at work on a log is known from its files; of two that begin, one is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.claims import STALE_S, Claim, Claims, machine, new_claim, started
from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.store.open_store import open_store


def claim(clock: VirtualClock, **changes: Any) -> Claim:
    made = new_claim("ns", is_embedded=True, address="127.0.0.1:1", now_us=clock.now_us())
    return dataclasses.replace(made, **changes)


def child(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=["disk", "memory"])
def claims(request: pytest.FixtureRequest, tmp_path: Path, clock: VirtualClock) -> Claims:
    place = str(tmp_path) if request.param == "disk" else "memory://"
    return Claims(open_store(place), clock=clock)


async def test_a_claim_is_seen_until_it_is_removed(claims: Claims, clock: VirtualClock) -> None:
    assert await claims.at_work() is None
    taken = await claims.take(claim(clock))
    assert await claims.at_work() == taken
    await claims.remove(taken)
    assert await claims.at_work() is None


async def test_a_second_platform_is_refused_and_told_who_has_the_log(
    claims: Claims, clock: VirtualClock
) -> None:
    await claims.take(claim(clock))
    with pytest.raises(dw.PlatformBusy, match=rf"process {os.getpid()} on .*take_over=True") as one:
        await claims.take(claim(clock))
    assert one.value.code == "platform.busy"


async def test_who_takes_the_log_over_is_at_work_and_then_the_first_again(
    claims: Claims, clock: VirtualClock
) -> None:
    first = await claims.take(claim(clock))
    second = await claims.take(claim(clock), over=True)
    assert await claims.at_work() == second
    assert await claims.at_work(beside=second.number) == first
    await claims.remove(second)
    assert await claims.at_work() == first


async def test_of_twenty_that_begin_together_one_has_the_log(
    claims: Claims, clock: VirtualClock
) -> None:
    async def begin() -> Any:
        try:
            return await claims.take(claim(clock))
        except dw.PlatformBusy:
            return None

    taken = [one for one in await asyncio.gather(*(begin() for _ in range(20))) if one]
    assert len(taken) == 1
    assert await claims.at_work() == taken[0]


async def test_the_claim_of_a_dead_process_counts_for_nothing(
    claims: Claims, clock: VirtualClock
) -> None:
    gone = child("")
    gone.communicate()
    await claims.take(claim(clock, pid=gone.pid, started="1"))
    assert await claims.at_work() is None
    assert (await claims.take(claim(clock))).number == 2


async def test_a_pid_that_is_used_again_is_another_process(
    claims: Claims, clock: VirtualClock
) -> None:
    await claims.take(claim(clock, started="long ago"))
    assert await claims.at_work() is None


async def test_a_stopped_process_still_has_its_log(claims: Claims, clock: VirtualClock) -> None:
    stopped = child("input()")
    try:
        os.kill(stopped.pid, signal.SIGSTOP)
        await claims.take(claim(clock, pid=stopped.pid, started=started(stopped.pid)))
        clock.move_to(clock.now_us() + 10 * round(STALE_S) * US)
        assert await claims.at_work() is not None
    finally:
        stopped.kill()
        stopped.communicate()
    assert await claims.at_work() is None


async def test_a_platform_elsewhere_lives_as_long_as_it_gives_signs_of_life(
    claims: Claims, clock: VirtualClock
) -> None:
    taken = await claims.take(claim(clock, machine="another", host="far"))
    for _ in range(3):
        clock.move_to(clock.now_us() + round(STALE_S * 0.9) * US)
        assert await claims.at_work() is not None
        await claims.beat(taken)
    clock.move_to(clock.now_us() + round(STALE_S) * US)
    assert await claims.at_work() is None


async def test_a_sign_of_life_brings_no_removed_claim_back(
    claims: Claims, clock: VirtualClock
) -> None:
    taken = await claims.take(claim(clock, machine="another"))
    await claims.remove(taken)
    await claims.beat(taken)
    assert await claims.at_work() is None


async def test_a_cluster_that_refuses_connections_is_gone_at_once(
    claims: Claims, clock: VirtualClock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        await claims.take(claim(clock, is_embedded=False, address=address, pid=1))
        assert await claims.at_work() is not None
        with pytest.raises(dw.PlatformBusy, match=f"connect.address='{address}', namespace='ns'"):
            await claims.take(claim(clock))
    assert await claims.at_work() is None


async def test_what_is_no_claim_is_passed_over(tmp_path: Path, clock: VirtualClock) -> None:
    (tmp_path / "platform").mkdir()
    for name, text in (("1.json", "{"), ("2.json", "[]"), ("3.json", '{"pid": "x"}'), ("x", "")):
        (tmp_path / "platform" / name).write_text(text)
    claims = Claims(open_store(tmp_path), clock=clock)
    assert await claims.at_work() is None
    assert await claims.take(claim(clock)) == await claims.at_work()


def test_a_process_is_known_by_its_start_and_a_zombie_is_none() -> None:
    other = child("input()")
    assert started(other.pid) == started(other.pid) != started(os.getpid())
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert started(other.pid) is None
    other.communicate()
    assert machine() == machine()


def test_a_forked_child_of_a_connected_process_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dynamic_workflows.actors.cluster.ray_session import RaySession

    session = RaySession(is_elsewhere=False, is_embedded=True)
    session.origin.pid = os.getppid()  # as the child finds what its parent has begun
    monkeypatch.setattr(RaySession, "_current", session)
    with pytest.raises(
        dw.PlatformBusy, match=f"forked from process {os.getppid()}.*after the fork"
    ):
        RaySession.living()
