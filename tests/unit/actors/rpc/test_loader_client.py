"""A tenant's calls from a driver: batched, patient, and through the accidents of actors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from local_world import RING, SLOW, UNKNOWN, LocalPeer, World, add_call, until

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.rpc import client as client_module
from dynamic_workflows.actors.rpc.actor_ref import ActorUnreachable
from dynamic_workflows.actors.rpc.client import TenantClient
from dynamic_workflows.eventlog.errors import (
    Corrupt,
    InstanceError,
    InvalidError,
    PlatformClosed,
    Unavailable,
)
from dynamic_workflows.loaders.protocol.calls import AwaitResult, DeleteInstance, TenantCall


def client_of(world: World, tenant_id: str = "acme", timeout_s: float = 30) -> TenantClient:
    return TenantClient(
        tenant_id,
        client_id=world.ids.token(),
        resolve=lambda name, gone: world.loader.resolve(name, gone),
        timeout_s=timeout_s,
    )


def result(name: str) -> TenantCall[Any]:
    return AwaitResult(id=name)


def add(client: TenantClient, token: str, amount: int = 1) -> Any:
    return client.call(add_call(token, amount))


async def test_the_calls_of_one_turn_are_one_message() -> None:
    world = await World().start()
    client = client_of(world)
    await add(client, "first")
    world.messages.clear()
    await asyncio.gather(*(add(client, f"token-{i}") for i in range(1_000)))
    assert [size for _, size in world.messages] == [1_000]
    assert len(world.books["acme"]) == 1_001
    await world.stop()


async def test_a_quick_call_does_not_wait_for_a_slow_one() -> None:
    world = await World().start()
    client = client_of(world)
    slow = asyncio.ensure_future(client.call(SLOW))
    assert await add(client, "quick") == 1
    assert await add(client, "again") == 2
    assert not slow.done()
    await client.call(RING)
    assert await slow == "at last"
    await world.stop()


async def test_a_thousand_results_wait_in_one_long_poll() -> None:
    world = await World().start()
    client = client_of(world)
    waiting = [asyncio.ensure_future(client.call(result(str(i)))) for i in range(1_000)]
    await until(lambda: world.tills.get("acme") and world.tills["acme"].waiting == 1_000)
    await asyncio.sleep(0.1)
    assert len(world.messages) == 2, "one that carried them, and one poll"
    await client.call(RING)
    assert await asyncio.gather(*waiting) == [str(i) for i in range(1_000)]
    await world.stop()


async def test_errors_arrive_as_themselves() -> None:
    world = await World().start()
    with pytest.raises(InvalidError) as caught:
        await client_of(world).call(UNKNOWN)
    assert caught.value.code == "batch.invalid"
    await world.stop()


async def test_calls_go_on_through_the_death_of_the_tenants_process() -> None:
    world = await World().start()
    client = client_of(world)
    waiting = asyncio.ensure_future(client.call(result("7")))
    slow = asyncio.ensure_future(client.call(SLOW))
    await until(lambda: world.tills.get("acme") and world.tills["acme"].waiting)
    slot = world.slot_of("acme")
    world.crash(slot)
    adding = [asyncio.ensure_future(add(client, f"token-{i}")) for i in range(10)]
    await asyncio.sleep(0.05)
    assert not any(call.done() for call in [waiting, slow, *adding])
    await world.restart(slot)
    assert max(await asyncio.gather(*adding)) == 10
    await client.call(RING)
    assert await waiting == "7"
    assert await slow == "at last"
    await world.stop()


def lose_next_reply(peer: LocalPeer) -> None:
    """The next message arrives, and what is answered does not."""
    honest = peer.call

    async def call(op: str, *args: Any, timeout_s: float | None = None) -> Any:
        peer.call = honest  # type: ignore[method-assign]
        await honest(op, *args, timeout_s=timeout_s)
        raise ActorUnreachable("the reply was lost")

    peer.call = call  # type: ignore[method-assign]


async def test_a_call_whose_reply_was_lost_is_made_once() -> None:
    world = await World().start()
    client = client_of(world)
    await add(client, "before")
    lose_next_reply(world.slot_of("acme"))
    assert await add(client, "token", 5) == 6
    assert world.books["acme"] == {"before": 1, "token": 5}
    await world.stop()


async def test_a_delete_whose_reply_was_lost_has_succeeded() -> None:
    world = await World().start()
    client = client_of(world)
    await add(client, "token")
    lose_next_reply(world.slot_of("acme"))
    await client.call(DeleteInstance(id="token"))
    assert world.books["acme"] == {}
    with pytest.raises(InstanceError):
        await client.call(DeleteInstance(id="token"))
    await world.stop()


WAITS = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        one = await step.wait_for_event("one", type="go", timeout="1 day")
        two = await step.wait_for_event("two", type="go", timeout="1 day")
        return [one.payload, two.payload]
"""


class RealWorld(World):
    """A world whose tenants have a core and a log."""

    platform: testing.TestPlatform

    async def open_tenant(self, tenant_id: str, *_: Any) -> Any:
        return await self.platform._local.tenant(tenant_id)

    async def lose_next(self, *, has_died: bool) -> None:
        """The next reply is lost; with the tenant that made it, or on its way."""
        peer = self.slot_of("acme")
        lose_next_reply(peer)
        if has_died:
            lossy = peer.call

            async def call(op: str, *args: Any, timeout_s: float | None = None) -> Any:
                try:
                    await lossy(op, *args, timeout_s=timeout_s)
                finally:
                    await self.platform.crash("acme")
                    self.crash(peer)
                    await self.restart(peer)

            peer.call = call  # type: ignore[method-assign]


@pytest.mark.parametrize("has_died", [False, True])
async def test_commands_whose_reply_was_lost_are_done_once(has_died: bool) -> None:
    code = dw.WorkerCode(main_module="index.py", modules={"index.py": WAITS})
    async with testing.connect(load=lambda tenant_id: code) as platform:
        world = RealWorld()
        world.platform = platform
        await world.start()
        client = client_of(world)
        workflows = dw.WorkflowBinding(client)
        await workflows.create(id="first")

        async def lossy(work: Any) -> Any:
            await world.lose_next(has_died=has_died)
            sent = len(world.messages)
            answer = await work
            assert sum(size > 0 for _, size in world.messages[sent:]) > 1, "it was sent again"
            return answer

        instance = await lossy(workflows.create())
        assert len((await workflows.list()).items) == 2
        await lossy(instance.send_event("go", 1))
        await platform.clock.settle()
        assert (await instance.status()).status == "waiting"
        await lossy(instance.restart())
        await lossy(instance.pause())
        await lossy(instance.resume())
        await lossy(instance.terminate())
        types = [event.type for event in await instance.history(all_runs=True)]
        for kind in "restarted paused resumed terminated".split():
            assert types.count(f"workflow_{kind}") == 1
        assert types.count("workflow_queued") == 2
        assert types.count("event_received") == 1
        deleted = await lossy(workflows.delete_batch([instance.id, "nobody"]))
        assert deleted.deleted == [instance.id]
        assert [error.id for error in deleted.errors] == ["nobody"]
        client.close()
        await world.stop()


async def test_calls_follow_a_tenant_that_went_to_sleep() -> None:
    world = await World().start()
    client = client_of(world)
    await add(client, "one")
    assert await world.slot_of("acme").call("make_room", "acme")
    assert await add(client, "two") == 2
    assert world.opened == ["acme", "acme"]
    await world.stop()


async def test_a_tenant_without_a_sign_of_life_is_unavailable() -> None:
    world = await World().start()

    async def resolve(name: str, gone: str | None) -> Any:
        raise Unavailable("no loader")

    client = TenantClient("acme", client_id="c", resolve=resolve, timeout_s=0.3)
    waiting = [asyncio.ensure_future(add(client, str(i))) for i in range(3)]
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, Unavailable)
        assert error.code == "platform.unavailable"
    with pytest.raises(Unavailable):
        await add(client, "later")
    await world.stop()


async def test_calls_to_a_tenant_that_cannot_be_opened_say_why() -> None:
    world = await World().start()
    world.corrupt.add("acme")
    client = client_of(world)
    calls = [asyncio.ensure_future(add(client, str(i))) for i in range(3)]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, Corrupt)
    world.corrupt.clear()
    assert await add(client, "later") == 1
    await world.stop()


async def test_calls_wait_for_a_tenant_whose_store_does_not_answer() -> None:
    world = await World().start()
    world.unavailable.add("acme")
    client, hasty = client_of(world), client_of(world, timeout_s=0.3)
    waiting = asyncio.ensure_future(add(client, "patient"))
    with pytest.raises(Unavailable):
        await add(hasty, "hasty")
    assert not waiting.done()
    world.unavailable.clear()
    assert await waiting == 1
    await world.stop()


async def test_who_gives_up_waiting_leaves_nothing_at_the_tenant() -> None:
    world = await World().start()
    client = client_of(world)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.call(AwaitResult(id="i")), 0.2)
    assert world.tills["acme"].waiting == 1
    await add(client, "next")
    await until(lambda: not world.tills["acme"].waiting)
    await world.stop()


async def test_a_closed_client_answers_nobody() -> None:
    world = await World().start()
    client = client_of(world)
    waiting = asyncio.ensure_future(client.call(AwaitResult(id="i")))
    await until(lambda: world.tills.get("acme") and world.tills["acme"].waiting)
    client.close()
    with pytest.raises(PlatformClosed):
        await waiting
    with pytest.raises(PlatformClosed):
        await add(client, "late")
    await world.stop()


async def test_more_calls_than_a_message_holds_go_in_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "BATCH_MAX", 10)
    world = await World().start()
    client = client_of(world)
    await add(client, "first")
    world.messages.clear()
    await asyncio.gather(*(add(client, str(i)) for i in range(25)))
    assert sorted(size for _, size in world.messages if size) == [5, 10, 10]
    await world.stop()
