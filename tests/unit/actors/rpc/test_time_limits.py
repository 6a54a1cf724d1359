"""Every call ends within its limit, whatever hangs, and its error names what did not answer."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from local_world import SLOW, World

import dynamic_workflows as dw
from dynamic_workflows.actors.rpc.actor_ref import ActorUnreachable
from dynamic_workflows.actors.rpc.client import TenantClient
from dynamic_workflows.actors.rpc.reconnecting import ReconnectingRef
from dynamic_workflows.eventlog.errors import Unavailable
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.protocol.calls import (
    AwaitResult,
    CreateBatch,
    GetStatus,
    NewInstance,
)

LIMIT_S = 0.3
CREATE = CreateBatch(items=[NewInstance(params=b"{}")])


class Silent:
    """A peer that is there, and answers nothing, as one that was stopped; or only some calls."""

    def __init__(self, name: str, answers: dict[str, Any] | None = None) -> None:
        self.name = name
        self.answers = answers or {}
        self.calls: list[str] = []

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        self.calls.append(op)
        if op in self.answers:
            answer = self.answers[op]
            if isinstance(answer, Exception):
                raise answer
            return answer
        try:
            return await asyncio.wait_for(asyncio.Event().wait(), timeout_s)
        except TimeoutError as error:
            raise ActorUnreachable(f"{self.name} did not answer {op}") from error


@contextmanager
def soon() -> Iterator[None]:
    """It took nothing like the time that something hangs."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 20


def client_of(peer: Any, timeout_s: float = LIMIT_S) -> TenantClient:
    async def resolve(tenant_id: str, gone: str | None) -> Any:
        return peer

    return TenantClient("acme", client_id="c", resolve=resolve, timeout_s=timeout_s)


async def test_a_call_to_an_actor_that_was_stopped_ends_and_names_it() -> None:
    with soon(), pytest.raises(Unavailable, match=r"create_batch of .*worker-7 does not answer"):
        await client_of(Silent("worker-7")).call(CREATE)


async def test_a_call_whose_actor_lives_while_its_store_hangs_ends_and_says_so() -> None:
    world = await World().start()
    client = TenantClient("acme", client_id="c", resolve=world.loader.resolve, timeout_s=LIMIT_S)
    with soon(), pytest.raises(Unavailable, match="lives, but what .* the store of the log"):
        await client.call(SLOW)
    client.close()
    await world.stop()


async def test_an_actor_that_was_stopped_costs_no_more_than_the_limit_though_it_is_looked_for() -> (
    None
):
    peer, asked = Silent("worker-7"), []

    async def resolve(tenant_id: str, gone: str | None) -> Any:
        asked.append(gone)
        return peer if len(asked) == 1 else await asyncio.Event().wait()

    client = TenantClient("acme", client_id="c", resolve=resolve, timeout_s=LIMIT_S)
    with pytest.raises(Unavailable, match="its actor (worker-7 )?does not answer"):
        await client.call(GetStatus(id="i"))
    assert len(asked) <= 2
    with soon(), pytest.raises(Unavailable, match="worker-7 did not answer exchange"):
        await client.call(GetStatus(id="i"))
    client.close()


@pytest.mark.parametrize("has_place", [True, False])
async def test_a_result_ends_in_its_time_though_nobody_answers(has_place: bool) -> None:
    peer = Silent("worker-7")

    async def resolve(tenant_id: str, gone: str | None) -> Any:
        return peer if has_place else await asyncio.Event().wait()

    client = TenantClient("acme", client_id="c", resolve=resolve, timeout_s=600)
    what = "worker-7 does not answer" if has_place else "no place for the tenant"
    with soon(), pytest.raises(TimeoutError, match=f"time of 0.1 s is up, and .*{what}"):
        await client.call(AwaitResult(id="i", timeout_s=0.1))
    client.close()


async def test_a_tenant_that_waits_for_room_has_more_time_than_one_that_hangs() -> None:
    async def resolve(tenant_id: str, gone: str | None) -> Any:
        await asyncio.sleep(2 * LIMIT_S)
        return Silent("slot", {"exchange": [(1, True, "made")]})

    client = TenantClient("acme", client_id="c", resolve=resolve, timeout_s=LIMIT_S)
    made: Any = await client.call(CREATE)
    assert made == "made"
    client.close()


async def test_a_loader_that_was_stopped_is_noticed_however_long_a_call_may_take() -> None:
    async def find() -> Any:
        return Silent("loader")

    with soon(), pytest.raises(Unavailable, match="the loader did not answer"):
        await ReconnectingRef("the loader", find, timeout_s=LIMIT_S).call("resolve")


async def test_a_loader_that_lives_may_take_its_time() -> None:
    class Slow(Silent):
        async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
            if op == "resolve":
                await asyncio.sleep(4 * LIMIT_S)
                return "found"
            return await super().call(op, timeout_s=timeout_s)

    peer = Slow("loader", {"stats": "well"})

    async def find() -> Any:
        return peer

    assert await ReconnectingRef("the loader", find, timeout_s=LIMIT_S).call("resolve") == "found"
    assert "stats" in peer.calls


async def test_a_full_disk_is_told_at_once_in_its_own_words() -> None:
    full = Unavailable("/log: No space left on device: free some space", errno=errno.ENOSPC)
    with soon(), pytest.raises(Unavailable, match="^/log: No space left on device"):
        await client_of(Silent("slot", {"exchange": full}), 600).call(CREATE)


async def test_the_reason_of_an_outage_is_told_and_not_what_followed_from_it() -> None:
    problems = iter(
        [
            Unavailable("the disk is gone"),
            ActorUnreachable("ActorDiedError"),
            ActorUnreachable("again"),
        ]
    )

    class Failing(Silent):
        async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
            raise next(problems, ActorUnreachable("and again"))

    with soon(), pytest.raises(Unavailable, match="the disk is gone"):
        await client_of(Failing("slot")).call(CREATE)


class HangingStore(MemoryStore):
    """A store that takes every request and answers none."""

    root = "the hanging store"

    async def create(self, key: str, data: bytes) -> None:
        await asyncio.Event().wait()

    async def get(self, key: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"config": {"client_timeout_seconds": 0.2}}, "the store of the log at .* in 0.2 s"),
        ({"timeout": 0.2}, r"connect has had its 0.2 s: the store of the log at .*timeout="),
    ],
)
async def test_connect_ends_in_its_time_and_names_the_store_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], words: str
) -> None:
    def open_store(root: Any) -> Store:
        return HangingStore()

    monkeypatch.setattr("dynamic_workflows.actors.cluster.driver.open_store", open_store)
    with soon(), pytest.raises(Unavailable, match=words):
        await dw.connect(tmp_path, load=dw.from_mapping({}), **limits)
