"""The supervisors' houses: what they say when their log cannot be opened, or is taken over."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dynamic_workflows.actors.config import PlatformConfig
from dynamic_workflows.actors.house import TimerHouse
from dynamic_workflows.actors.peers import Lost, Peer
from dynamic_workflows.actors.setup import Setup
from dynamic_workflows.eventlog.errors import Fenced, Unavailable


async def no_loader() -> Peer:
    raise Lost("there is no loader")


def house(root: Path, namespace: str, *, open_within_s: float = 30.0) -> TimerHouse:
    setup = Setup(str(root), PlatformConfig(), namespace)
    return TimerHouse(setup, no_loader, open_within_s=open_within_s)


async def test_a_platform_whose_log_was_taken_over_says_by_whom_and_what_to_do(
    tmp_path: Path,
) -> None:
    first, second = house(tmp_path, "blue"), house(tmp_path, "green")
    await first.open()
    await first.target.opened(["acme"])
    await second.open()
    for _ in range(2):
        with pytest.raises(Fenced, match="another platform has taken over the log") as caught:
            await first.target.opened(["zoo"])
        message = caught.value.message
        assert str(tmp_path) in message
        assert f"(namespace 'green', process {os.getpid()} on {socket.gethostname()}; since" in (
            message
        )
        assert "close one of the two" in message
    await second.target.opened(["zoo"])
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
    await one.target.opened(["acme"])
    await one.close()
