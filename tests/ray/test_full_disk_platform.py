"""A platform whose disk fills up, and is free again."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from patience_limits import SOON_S
from ray_world import eventually, expected, loader_of

import dynamic_workflows as dw
from dynamic_workflows.eventlog.errors import Unavailable, needs_operator


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Take every byte that is left."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
        with pytest.raises(OSError, match="No space left"):
            file.write(b"x")


async def until_told(call: Callable[[], Any], ballast: Path) -> list[Any]:
    """Call until nothing is taken any more, and be told in the disk's words; what was taken.

    A log has some room reserved, and gives back what it has not used when it is opened again.
    """
    taken: list[Any] = []
    refused = 0
    while refused < 2:
        fill(ballast)
        try:
            async with asyncio.timeout(SOON_S):
                taken.append(await call())
            refused = 0
        except Unavailable as error:
            assert "No space left on device: free some space" in str(error)  # noqa: PT017
            refused += 1
    return taken


async def eventually_result(instance: Any) -> Any:
    """The result, though the first calls may still hear of the disk."""

    async def result() -> Any:
        try:
            return await instance.result(timeout=30)
        except Unavailable as error:
            if needs_operator(error):
                return None
            raise

    return await eventually(result, what=f"the result of {instance.id}")


@pytest.mark.ray
async def test_a_platform_on_a_disk_that_was_full_goes_on_by_itself(small_disk: Path) -> None:
    config = {"isolation": "unsafe-none", "pool_size": 1, "client_timeout_seconds": 120}
    log, ballast = small_disk / "log", small_disk / "ballast"
    async with dw.connect(log, load=loader_of(), config=config) as platform:
        acme, newco = platform.tenant("acme").workflows, platform.tenant("newco").workflows
        waiting = await acme.create(id="waiting", params={"steps": 1, "wait": True})
        sleeping = await acme.create(id="sleeping", params={"steps": 2, "sleep": "1 second"})
        large = {"steps": 1, "is": "x" * 40_000}
        made = await until_told(partial(acme.create, params=large), ballast)
        made += await until_told(partial(newco.create, params=large), ballast)
        await until_told(partial(waiting.send_event, "unwanted", "x" * 1_000), ballast)
        assert platform.query("select count(*) as n from events").to_pylist()[0]["n"] > 0
        ballast.unlink()
        assert await eventually_result(sleeping) == expected("sleeping", 2)
        await waiting.send_event("approved", "at last")
        assert (await eventually_result(waiting))["done"] == [0, "at last"]
        made += [await binding.create(params={"steps": 1}) for binding in (acme, newco)]
        for instance in made:
            assert await eventually_result(instance) == expected(instance.id, 1)
