"""Compaction: nothing kept is lost, nothing deleted is left, whatever the order of changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from histories import Writer
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.events import Row, span, unfold
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.manifest import Manifest
from dynamic_workflows.eventlog.segments import segment
from dynamic_workflows.eventlog.segments.compaction import (
    CompactionPlan,
    apply,
    compact,
    expired,
    plan,
    remove_garbage,
    seal,
    sweep,
)
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.memory import MemoryStore

STREAM = "tenants/tenant=acme"
CONFIG = CompactionConfig(fan_in=3, rows_max=40, erase_delay_s=10, grace_s=5)


class Owner:
    """What a log does with compaction, without a write-ahead log."""

    def __init__(self) -> None:
        self.store = MemoryStore("memory://compaction")
        self.ids = SeededIds(3)
        self.clock = VirtualClock()
        self.manifest = Manifest(stream=STREAM, tenant_id="acme")
        self.tail: list[Row] = []
        self.next_seq = 1

    def append(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            row.seq, self.next_seq = self.next_seq, self.next_seq + span(row)
        self.tail += rows
        return rows

    async def seal(self) -> None:
        if not self.tail:
            return
        change = await seal(
            self.store,
            self.manifest,
            self.tail,
            seq_max=self.next_seq - 1,
            ids=self.ids,
            now_us=self.clock.now_us(),
            config=CONFIG,
        )
        self.manifest = apply(self.manifest, change, now_us=self.clock.now_us())
        self.tail = []

    async def compact(self, *, erase_now: bool = False) -> list[CompactionPlan]:
        done = []
        while (
            what := plan(
                self.manifest, now_us=self.clock.now_us(), config=CONFIG, erase_now=erase_now
            )
        ) is not None:
            done.append(what)
            change = await compact(
                self.store, self.manifest, what, ids=self.ids, now_us=self.clock.now_us()
            )
            self.manifest = apply(self.manifest, change, now_us=self.clock.now_us())
        return done

    async def remove_garbage(self) -> None:
        keys = expired(self.manifest, now_us=self.clock.now_us(), config=CONFIG)
        self.manifest = await remove_garbage(self.store, self.manifest, keys)

    async def files(self) -> list[str]:
        return [entry.key for entry in await self.store.list(f"{STREAM}/events/")]

    async def sealed(self) -> list[Row]:
        return [
            row
            async for batch in segment.read_rows(self.store, self.manifest.segments)
            for row in batch
        ]

    async def is_owner(self) -> bool:
        return True


def unfolded(rows: list[Row]) -> list[Row]:
    return [half for row in rows for half in unfold(row)]


COMMANDS = st.lists(
    st.sampled_from(["life", "life", "begin", "delete", "seal", "compact", "erase", "collect"]),
    max_size=40,
)


@settings(max_examples=60)
@given(COMMANDS)
def test_rows_survive_and_deleted_ones_go_in_any_order_of_changes(commands: list[str]) -> None:
    async def run() -> None:
        owner = Owner()
        alive: dict[str, list[Row]] = {}
        made = 0
        for command in commands:
            if command in ("life", "begin"):
                made += 1
                one = Writer(owner.clock, f"id-{made * 7919 % 101}-{made}")
                alive[one.instance_id] = owner.append(getattr(one, command)())
            elif command == "delete" and alive:
                name = sorted(alive)[len(alive) // 2]
                owner.append(Writer(owner.clock, name).delete())
                del alive[name]
            elif command == "seal":
                await owner.seal()
            elif command == "compact":
                await owner.compact()
            elif command == "erase":
                await owner.compact(erase_now=True)
            elif command == "collect":
                await owner.remove_garbage()
        await owner.seal()
        await owner.compact(erase_now=True)
        expected = sorted(
            (row for rows in alive.values() for row in unfolded(rows)), key=lambda row: row.seq
        )
        assert await owner.sealed() == expected
        # Every number is accounted for, and the totals are those of the list.
        manifest = owner.manifest
        assert manifest.sealed_seq == owner.next_seq - 1
        assert manifest.rows + manifest.erased == manifest.sealed_seq
        assert manifest.erase_after_us is None
        owner.clock.move_to(owner.clock.now_us() + 6 * US)
        await owner.remove_garbage()
        assert await owner.files() == sorted(info.key for info in manifest.segments if info.rows)

    asyncio.run(run())


async def test_neighbours_of_one_level_become_one_of_the_next() -> None:
    owner = Owner()
    for number in range(7):
        owner.append(Writer(owner.clock, f"id-{number}").begin())
        await owner.seal()
    plans = await owner.compact()
    assert [len(one.merge) for one in plans] == [3, 3]
    assert [(info.level, info.rows) for info in owner.manifest.segments] == [(1, 6), (1, 6), (0, 2)]


async def test_merge_stays_under_the_largest_size() -> None:
    owner = Owner()
    for number in range(6):
        owner.append([r for k in range(2) for r in Writer(owner.clock, f"{number}-{k}").life()])
        await owner.seal()
    await owner.compact()
    assert all(info.rows <= CONFIG.rows_max for info in owner.manifest.segments)
    assert len(owner.manifest.segments) < 6


async def test_large_tail_is_sealed_in_parts_that_leave_no_gap() -> None:
    owner = Owner()
    rows = owner.append([r for k in range(20) for r in Writer(owner.clock, f"{k}").life()])
    await owner.seal()
    assert len(owner.manifest.segments) > 1
    assert await owner.sealed() == unfolded(rows)


async def test_erasure_waits_for_its_delay_and_then_leaves_no_trace() -> None:
    owner = Owner()
    one, two = Writer(owner.clock, "deleted-one"), Writer(owner.clock, "zwei")
    owner.append([*one.life(), *two.life()])
    await owner.seal()
    owner.append(one.delete())
    await owner.seal()
    assert await owner.compact() == []
    owner.clock.move_to(owner.clock.now_us() + 10 * US)
    assert [bool(what.erase) for what in await owner.compact()] == [True]
    owner.clock.move_to(owner.clock.now_us() + 5 * US)
    await owner.remove_garbage()
    for entry in await owner.store.list(""):
        assert b"deleted-one" not in await owner.store.get(entry.key)
    assert {row.instance_id for row in await owner.sealed()} == {"zwei"}


async def test_instance_created_and_deleted_in_one_tail_is_never_sealed() -> None:
    owner = Owner()
    one = Writer(owner.clock, "brief")
    owner.append([*one.life(), *one.delete()])
    await owner.seal()
    assert await owner.files() == []
    assert (owner.manifest.rows, owner.manifest.erased) == (0, owner.manifest.sealed_seq)


async def test_id_that_lives_again_keeps_its_new_life() -> None:
    owner = Owner()
    one = Writer(owner.clock, "phoenix")
    owner.append(one.life())
    await owner.seal()
    owner.append(one.delete())
    again = owner.append(one.begin())
    await owner.seal()
    await owner.compact(erase_now=True)
    assert await owner.sealed() == unfolded(again)


async def test_same_id_in_another_workflow_is_left_alone() -> None:
    owner = Owner()
    one, other = Writer(owner.clock, "same", "A"), Writer(owner.clock, "same", "B")
    owner.append(one.life())
    kept = owner.append(other.life())
    await owner.seal()
    owner.append(one.delete())
    await owner.seal()
    await owner.compact(erase_now=True)
    assert await owner.sealed() == unfolded(kept)


async def test_replaced_files_stay_for_readers_until_their_grace_is_over() -> None:
    owner = Owner()
    for number in range(3):
        owner.append(Writer(owner.clock, f"id-{number}").begin())
        await owner.seal()
    before = owner.manifest
    await owner.compact()
    await owner.remove_garbage()
    rows = [r async for batch in segment.read_rows(owner.store, before.segments) for r in batch]
    assert len(rows) == 6
    owner.clock.move_to(owner.clock.now_us() + 5 * US)
    await owner.remove_garbage()
    assert await owner.files() == [info.key for info in owner.manifest.segments]
    assert (owner.manifest.garbage, owner.manifest.garbage_us) == ((), ())


async def test_files_of_a_change_that_was_never_published_are_swept() -> None:
    owner = Owner()
    owner.append(Writer(owner.clock).life())
    published = owner.manifest
    await owner.seal()
    (orphan,) = await owner.files()
    assert await sweep(owner.store, owner.manifest, is_owner=owner.is_owner) == []
    assert await sweep(owner.store, published, is_owner=owner.is_owner) == [orphan]
    assert await owner.files() == []


async def test_superseded_owner_sweeps_nothing() -> None:
    """To it, the segments of the owner after it look like orphans."""
    owner = Owner()
    stale = owner.manifest
    owner.append(Writer(owner.clock).life())
    await owner.seal()

    async def is_owner() -> bool:
        return False

    assert await sweep(owner.store, stale, is_owner=is_owner) == []
    assert len(await owner.files()) == 1


async def test_change_that_would_lose_rows_is_refused() -> None:
    owner = Owner()
    for number in range(2):
        owner.append(Writer(owner.clock, f"id-{number}").begin())
        await owner.seal()
    first, _ = owner.manifest.segments
    changed: Any = structs.replace(owner.manifest, segments=(first,))
    owner.append(Writer(owner.clock, "later").begin())
    change = await seal(
        owner.store,
        owner.manifest,
        owner.tail,
        seq_max=owner.next_seq - 1,
        ids=owner.ids,
        now_us=0,
    )
    with pytest.raises(AssertionError, match="gap"):
        apply(changed, change, now_us=0)
