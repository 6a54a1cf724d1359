"""The supervisors' houses: what they say when their log cannot be opened, or is taken over."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dynamic_workflows.actors.placement.service_log import ServiceLog
from dynamic_workflows.actors.placement.wiring import TimerService
from dynamic_workflows.actors.rpc.actor_ref import ActorRef, ActorUnreachable
from dynamic_workflows.actors.rpc.actor_settings import Setup
from dynamic_workflows.actors.settings.platform_config import PlatformConfig
from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.errors import Fenced, Unavailable
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.eventlog.wal.recovery import read_tail


async def no_loader() -> ActorRef:
    raise ActorUnreachable("there is no loader")


def house(root: Path, namespace: str, *, open_within_s: float = 30.0) -> TimerService:
    setup = Setup(str(root), PlatformConfig(), namespace)
    return TimerService(setup, no_loader, open_within_s=open_within_s)


async def test_a_platform_whose_log_was_taken_over_says_by_whom_and_what_to_do(
    tmp_path: Path,
) -> None:
    first, second = house(tmp_path, "blue"), house(tmp_path, "green")
    await first.open()
    await first.opened([("acme", 1)])
    await second.open()
    for _ in range(2):
        with pytest.raises(Fenced, match="another platform has taken over the log") as caught:
            await first.opened([("zoo", 1)])
        message = caught.value.message
        assert str(tmp_path) in message
        assert f"(namespace 'green', process {os.getpid()} on {socket.gethostname()}; since" in (
            message
        )
        assert "close one of the two" in message
    await second.opened([("zoo", 1)])
    await first.close()
    await second.close()


async def test_a_log_that_cannot_be_opened_is_given_up_with_the_reason_and_opened_later(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("no directory")
    root = tmp_path / "file" / "log"
    one = house(root, "blue", open_within_s=0.3)
    with pytest.raises(Unavailable, match="cannot be opened on") as caught:
        await one.open()
    assert str(root) in caught.value.message
    assert "Not a directory" in caught.value.message
    (tmp_path / "file").unlink()
    await one.open()
    await one.opened([("acme", 1)])
    await one.close()


@pytest.mark.parametrize("stream", ["loader", "timers/0"])
async def test_a_supervisors_log_is_sealed_and_merged_as_time_passes(stream: str) -> None:
    store, clock = MemoryStore(), VirtualClock()
    setup = Setup(store.root, PlatformConfig(), "blue")
    kept = await ServiceLog.open(setup, store, stream, clock=clock, ids=SeededIds(1))
    rounds = 40
    for number in range(rounds):
        row = Row(type="slot_adopted", workflow="", instance_id=f"slot-{number}", ts=clock.now_us())
        await kept.log.append([row])
        until_us = clock.now_us() + 400 * US
        while clock.fire_next(until_us=until_us):
            await kept.caught_up()
        clock.move_to(until_us)
    tail = read_tail(store, stream)
    assert tail is not None
    assert tail.manifest.sealed_seq == rounds
    assert not tail.rows
    assert len(tail.manifest.segments) < rounds / 2, "small segments were merged"
    assert len(await store.list(f"{stream}/")) < rounds, "nothing that was merged stays behind"
    await kept.close()


async def test_the_timer_finds_in_its_sealed_log_what_it_had_noted(tmp_path: Path) -> None:
    clock = VirtualClock()
    setup = Setup(str(tmp_path), PlatformConfig(), "blue")
    for number in range(3):
        one = TimerService(setup, no_loader, clock=clock)
        await one.open()
        assert (await one.stats()).open == number
        await one.opened([(f"tenant-{number}", 1)])
        await one.close()
        tail = read_tail(open_store(tmp_path), "timers/0")
        assert tail is not None
        assert (tail.manifest.sealed_seq, tail.rows) == (number + 1, [])
