"""What every store promises, asked of every store that can run here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import servers
from faults import AFTER, BEFORE, DELAY, SHUFFLE, FaultStore

from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.errors import Fenced, InvalidError, Unavailable
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.base import (
    AlreadyExists,
    NotFound,
    Store,
    check_key,
    create_once,
    probe,
)
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.eventlog.wal.recovery import read_tail

NASTY_KEY = "tenants/tenant=a%2Fb%%é ü/wal/00000000000000000001"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with servers.s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def azure() -> Iterator[dict[str, str]]:
    reason = servers.azurite_missing()
    if reason is not None:
        pytest.skip(reason)
    with servers.azure_server() as environment:
        yield environment


KINDS = ["memory", "local", "s3", "azure", "late memory", "late local", "late s3"]


@pytest.fixture(params=KINDS)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    kind = request.param.removeprefix("late ")
    if kind in ("s3", "azure"):
        for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
            monkeypatch.delenv(name)
        for name, value in request.getfixturevalue(kind).items():
            monkeypatch.setenv(name, value)
    scheme = {"s3": "s3", "azure": "az"}.get(kind)
    root = {"memory": "memory://", "local": str(tmp_path)}.get(kind)
    inner = open_store(root or f"{scheme}://bucket/{SystemIds().token()} x")
    late = request.param.startswith("late ")
    yield FaultStore(inner, lambda op, _: SHUFFLE if op == "list" else DELAY) if late else inner
    await inner.close()


async def test_what_was_created_is_read_back_whole_and_in_part(store: Store) -> None:
    await store.create(NASTY_KEY, b"0123456789")
    assert await store.get(NASTY_KEY) == b"0123456789"
    assert await store.get_range(NASTY_KEY, 3, 4) == b"3456"
    assert await store.get_range(NASTY_KEY, 8, 100) == b"89"
    assert await store.get_range(NASTY_KEY, 10, 5) == b""
    assert await store.get_range(NASTY_KEY, 99, 5) == b""
    assert await asyncio.to_thread(store.get_blocking, NASTY_KEY) == b"0123456789"
    assert await asyncio.to_thread(store.get_range_blocking, NASTY_KEY, 3, 4) == b"3456"
    assert await asyncio.to_thread(store.get_range_blocking, NASTY_KEY, 10, 5) == b""


async def test_a_name_is_created_once_and_the_second_changes_nothing(store: Store) -> None:
    await store.create("a/b", b"first")
    with pytest.raises(AlreadyExists):
        await store.create("a/b", b"second")
    assert await store.get("a/b") == b"first"


async def test_of_many_creates_at_once_exactly_one_succeeds(store: Store) -> None:
    async def attempt(number: int) -> int | None:
        try:
            await store.create("race", b"%d" % number)
        except (AlreadyExists, Unavailable):
            return None  # Unavailable: a store may answer "conflict, try again"
        return number

    winners = [n for n in await asyncio.gather(*map(attempt, range(8))) if n is not None]
    assert len(winners) <= 1
    if winners:
        assert await store.get("race") == b"%d" % winners[0]


async def test_put_replaces_and_empty_objects_exist(store: Store) -> None:
    await store.put("a", b"one")
    await store.put("a", b"")
    assert await store.get("a") == b""
    assert [entry.size for entry in await store.list("")] == [0]


async def test_what_is_missing_is_not_found_and_may_be_deleted(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.get("a/none")
    with pytest.raises(NotFound):
        await store.get_range("a/none", 0, 1)
    await store.delete("a/none")
    await store.create("a/some", b"x")
    await store.delete("a/some")
    with pytest.raises(NotFound):
        await store.get("a/some")
    await store.create("a/some", b"y")
    assert await store.get("a/some") == b"y"


@pytest.mark.parametrize("key", ["a/416", "InvalidRange", "beyond/b"])
async def test_what_is_missing_is_not_found_whatever_its_name(store: Store, key: str) -> None:
    with pytest.raises(NotFound):
        await store.get_range(key, 0, 1)
    with pytest.raises(NotFound):
        await asyncio.to_thread(store.get_range_blocking, key, 0, 1)


async def test_a_listing_has_everything_under_a_prefix_with_sizes(store: Store) -> None:
    keys = [f"m/{number:020d}" for number in (1, 2, 10)] + ["m2/x", "m/deep/er", NASTY_KEY]
    for key in keys:
        await store.create(key, b"12345")
    found = await store.list("m/")
    assert sorted(entry.key for entry in found) == sorted(k for k in keys if k.startswith("m/"))
    assert {entry.size for entry in found} == {5}
    after = await store.list("m/", after=f"m/{2:020d}")
    assert sorted(entry.key for entry in after) == [f"m/{10:020d}", "m/deep/er"]
    assert [entry.key for entry in await store.list("tenants/")] == [NASTY_KEY]
    assert await store.list("nothing/") == []
    blocking = await asyncio.to_thread(store.list_blocking, "m/")
    assert [entry.key for entry in blocking] == sorted(k for k in keys if k.startswith("m/"))


async def test_large_objects_arrive_whole(store: Store) -> None:
    data = os.urandom(1024 * 1024) * 6
    await store.create("large", data)
    assert await store.get("large") == data
    assert await store.get_range("large", 5 * 1024 * 1024, 100) == data[5 << 20 : (5 << 20) + 100]


async def test_a_log_lives_on_every_store(store: Store) -> None:
    stream = tenant_stream("acme/é")

    async def opened() -> EventLog:
        return await EventLog.open(
            store, stream, tenant_id="acme/é", clock=SystemClock(), ids=SystemIds()
        )

    log = await opened()
    await asyncio.gather(*(log.append([_row(number)]) for number in range(20)))
    await log.seal()
    await log.append([_row(20)])
    newer = await opened()
    assert newer.last_seq == 21
    with pytest.raises(Fenced):
        await log.append([_row(99)])
    await newer.append([_row(21)])
    seqs = [row.seq async for batch in newer.rows() for row in batch]
    assert seqs == list(range(1, 23))
    assert [row.payload for row in await newer.history("W", "i-3")] == [b"3"]
    tail = await asyncio.to_thread(read_tail, store, stream)
    assert tail is not None
    assert [row.seq for row in tail.rows] == [21, 22]
    await newer.close(seal=True)
    await log.close()


def _row(number: int) -> Row:
    return Row(
        type="event_received", workflow="W", instance_id=f"i-{number}", payload=b"%d" % number
    )


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "../a", "a/./b", "a/../b", "a\0b"])
def test_keys_that_leave_the_root_are_refused(key: str) -> None:
    with pytest.raises(InvalidError):
        check_key(key)


async def test_a_store_that_lets_two_creates_succeed_is_refused(tmp_path: Path) -> None:
    class Careless(MemoryStore):
        async def create(self, key: str, data: bytes) -> None:
            await self.put(key, data)

    with pytest.raises(InvalidError, match="conditional writes"):
        await EventLog.open(
            Careless(),
            tenant_stream("a"),
            tenant_id="a",
            clock=SystemClock(),
            ids=SystemIds(),
            config=LogConfig(),
        )


async def test_the_probe_leaves_nothing_behind() -> None:
    store = MemoryStore()
    await probe(store, SystemIds())
    assert store.objects == {}


@pytest.mark.parametrize("fault", [BEFORE, AFTER])
async def test_create_once_survives_a_lost_request_and_a_lost_reply(fault: str) -> None:
    faults = iter([fault])
    store = FaultStore(MemoryStore(), lambda op, _: next(faults, None) if op == "create" else None)
    await create_once(store, "a", b"token-1")
    assert await store.get("a") == b"token-1"
    with pytest.raises(AlreadyExists):
        await create_once(store, "a", b"token-2")


async def test_create_once_says_unavailable_when_it_cannot_know() -> None:
    store = FaultStore(MemoryStore(), lambda _op, _key: BEFORE)
    with pytest.raises(Unavailable):
        await create_once(store, "a", b"token-1")


async def test_no_file_can_be_seen_half_written_and_garbage_is_passed_over(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".tmp-dead").write_bytes(b"half")
    await store.create("a/b", b"x" * 100_000)
    assert [entry.key for entry in await store.list("a/")] == ["a/b"]
    await store.close()
