"""The caches of code: what is in use stays, whatever else comes by."""

from __future__ import annotations

import pytest

from dynamic_workflows.actors.code import code_resolver
from dynamic_workflows.actors.code.code_resolver import Bundles, CodeResolver, Resolved
from dynamic_workflows.actors.hosting import code_cache
from dynamic_workflows.actors.hosting.code_cache import ResolvedCode
from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.bundles.bundle import WorkerCode, bundle_of


def code(text: str) -> WorkerCode:
    return WorkerCode("index.py", {"index.py": f"TEXT = {text!r}\n"})


class CountingStore(MemoryStore):
    """Notes which keys were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    async def get(self, key: str) -> bytes:
        self.read.append(key)
        return await super().get(key)


async def test_a_bundle_in_use_stays_in_memory_while_many_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = CountingStore()
    bundles = Bundles(store)
    hot = await bundles.put(bundle_of(code("hot"))[0])
    for number in range(code_resolver.BUNDLES_HELD * 2):
        await bundles.put(bundle_of(code(f"{number}"))[0])
        await bundles.get(hot)
    assert store.read == []


async def test_of_bundles_that_nobody_asks_for_the_oldest_goes_first() -> None:
    store = CountingStore()
    bundles = Bundles(store)
    first = await bundles.put(bundle_of(code("first"))[0])
    second = await bundles.put(bundle_of(code("second"))[0])
    for number in range(code_resolver.BUNDLES_HELD - 1):
        await bundles.put(bundle_of(code(f"{number}"))[0])
    await bundles.get(second)
    assert store.read == []
    await bundles.get(first)
    assert len(store.read) == 1


async def test_an_answer_of_load_holds_for_its_time_and_no_longer() -> None:
    clock, asked = VirtualClock(), []

    def load(tenant_id: str) -> WorkerCode:
        asked.append(tenant_id)
        return code(f"{len(asked)}")

    codes = CodeResolver(MemoryStore(), clock=clock, ttl_s=60, load=load)
    first = await codes.current("acme")
    assert first.until_us == clock.now_us() + 60 * US
    clock.move_to(first.until_us - 1)
    assert await codes.current("acme") == first
    clock.move_to(first.until_us)
    second = await codes.current("acme")
    assert second.code_hash != first.code_hash
    assert asked == ["acme", "acme"]


async def test_the_answer_for_a_tenant_that_is_asked_for_stays_while_many_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_resolver, "ANSWERS_HELD", 10)
    asked = []

    def load(tenant_id: str) -> WorkerCode:
        asked.append(tenant_id)
        return code("the same")

    codes = CodeResolver(MemoryStore(), clock=VirtualClock(), ttl_s=60, load=load)
    for number in range(30):
        await codes.current("hot")
        await codes.current(f"other-{number}")
    assert asked.count("hot") == 1


def test_resolved_code_holds_until_its_time_and_the_hottest_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(code_cache, "HELD_MAX", 10)
    clock = VirtualClock()
    held = ResolvedCode(clock)
    until_us = clock.now_us() + 60 * US
    held.hold((None, b"hot"), Resolved("hot", until_us=until_us))
    for number in range(30):
        held.hold((None, b"%d" % number), Resolved("other", until_us=until_us))
        assert held.get((None, b"hot")) is not None
    assert held.get((None, b"0")) is None
    clock.move_to(until_us)
    assert held.get((None, b"hot")) is None
