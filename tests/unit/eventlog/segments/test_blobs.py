"""Blobs: large values come back whole, are stored once, and go when nothing names them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from histories import Writer, opened

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt, InvalidError, ValueTooLargeError
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.segments import compaction
from dynamic_workflows.eventlog.segments.blobs import VALUE_BYTES_MAX, Blobs
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store

STREAM = "tenants/tenant=acme"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return Blobs(store, STREAM, ids=SeededIds(1))


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


async def names(store: Store) -> set[str]:
    return {entry.key.rpartition("/")[2] for entry in await store.list(f"{STREAM}/blobs/")}


async def test_value_comes_back_whole_under_its_hash(store: Store, blobs: Blobs) -> None:
    data = bytes(range(256)) * 1000
    ref = await blobs.put(data)
    assert ref == hashlib.sha256(data).hexdigest()
    assert await blobs.get(ref) == data
    assert await names(store) == {ref}


async def test_equal_values_are_stored_once(store: Store, blobs: Blobs) -> None:
    assert await blobs.put(b"x" * 70_000) == await blobs.put(b"x" * 70_000)
    assert len(await names(store)) == 1


async def test_named_value_hides_its_hash(store: Store, blobs: Blobs) -> None:
    ref = await blobs.put(b"secret", name="ab" * 16)
    assert ref == "ab" * 16
    assert await names(store) == {ref}
    assert await blobs.get(ref) == b"secret"


@pytest.mark.parametrize("name", ["../x", "", "A", "x" * 3, "a/b"])
async def test_name_that_could_leave_the_directory_is_refused(blobs: Blobs, name: str) -> None:
    with pytest.raises(InvalidError):
        await blobs.put(b"x", name=name)
    with pytest.raises(InvalidError):
        await blobs.get(name)


async def test_value_over_the_limit_is_refused_and_not_stored(store: Store, blobs: Blobs) -> None:
    with pytest.raises(ValueTooLargeError) as caught:
        await blobs.put(bytes(VALUE_BYTES_MAX + 1))
    assert caught.value.code == "value.too_large"
    assert str(VALUE_BYTES_MAX) in caught.value.message
    assert await names(store) == set()


async def test_missing_and_changed_blobs_are_corrupt(
    store: Store, blobs: Blobs, tmp_path: Path
) -> None:
    ref = await blobs.put(b"x")
    (tmp_path / STREAM / "blobs" / ref).write_bytes(b"y")
    with pytest.raises(Corrupt, match=ref):
        await blobs.get(ref)
    await store.delete(f"{STREAM}/blobs/{ref}")
    with pytest.raises(Corrupt, match="missing"):
        await blobs.get(ref)


async def test_only_blobs_that_nothing_names_are_collected(store: Store, blobs: Blobs) -> None:
    kept, gone = await blobs.put(b"kept"), await blobs.put(b"gone!")
    young = await blobs.put(b"young")
    blobs.mark_sealed([kept, gone])
    totals = await blobs.collect({kept}, is_owner=yes)
    assert (totals.kept, totals.kept_bytes) == (2, 9)
    assert (totals.removed, totals.removed_bytes) == (1, 5)
    assert await names(store) == {kept, young}


async def test_superseded_owner_collects_nothing(store: Store, blobs: Blobs) -> None:
    blobs.mark_sealed([await blobs.put(b"x")])
    assert (await blobs.collect(set(), is_owner=no)).removed == 0
    assert len(await names(store)) == 1


async def test_blob_of_an_earlier_owner_is_not_relied_on(store: Store, blobs: Blobs) -> None:
    """That owner may be about to collect it: a row of the new owner must not name it."""
    old = await blobs.put(b"same")
    blobs.mark_sealed([old])
    successor = Blobs(store, STREAM, ids=SeededIds(2))
    new: list[str] = []

    async def is_owner_until_now() -> bool:
        new.append(await successor.put(b"same"))
        return True

    assert (await blobs.collect(set(), is_owner=is_owner_until_now)).removed == 1
    assert new != [old]
    assert await successor.get(new[0]) == b"same"
    assert await successor.put(b"same") == new[0]


async def test_collected_value_can_be_stored_again(blobs: Blobs) -> None:
    blobs.mark_sealed([await blobs.put(b"x")])
    await blobs.collect(set(), is_owner=yes)
    assert await blobs.get(await blobs.put(b"x")) == b"x"


async def test_blob_of_a_deleted_instance_is_found_dead_after_erasure(store: Store) -> None:
    clock = VirtualClock()
    async with opened(store, clock=clock) as log:
        one, two = Writer(clock, "one"), Writer(clock, "two")
        rows = [*one.life(), *two.life()]
        rows[3].blob = await log.put_blob(b"of one")
        rows[8].blob = await log.put_blob(b"of two")
        await log.append(rows)
        await log.seal()
        assert await compaction.live_blobs(store, log.manifest) == {rows[3].blob, rows[8].blob}
        await log.append(one.delete())
        await log.seal()
        plan = compaction.plan(log.manifest, now_us=0, config=CompactionConfig(), erase_now=True)
        assert plan is not None
        change = await compaction.compact(store, log.manifest, plan, ids=SeededIds(9), now_us=0)
        after = compaction.apply(log.manifest, change, now_us=0)
        assert await compaction.live_blobs(store, after) == {rows[8].blob}
