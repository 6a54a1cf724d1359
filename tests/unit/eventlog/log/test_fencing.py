"""Two owners alive at once lose nothing that was acknowledged, and double nothing."""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
from pathlib import Path

import explorer
import pytest
from faults import AFTER, BEFORE, DELAY, TORN, FaultStore
from fencing_schedules import FIRST_SEED, SCHEDULES, explore
from paths import SUPPORT
from simdisk import SimDisk

from dynamic_workflows.eventlog import manifest
from dynamic_workflows.eventlog.clock import SystemClock, VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt, Fenced, Unavailable
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds, SystemIds
from dynamic_workflows.eventlog.log import event_log as log
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.segments import compaction, segment
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.eventlog.wal import local
from dynamic_workflows.eventlog.wal.file import WalFile

STREAM = tenant_stream("t")


def row(name: str) -> Row:
    return Row(type="event_received", workflow="W", instance_id=name, payload=name.encode())


async def opened(store: Store, seed: int = 1) -> EventLog:
    return await EventLog.open(
        store, STREAM, tenant_id="t", clock=VirtualClock(), ids=SeededIds(seed)
    )


# -- every order that chance finds ---------------------------------------------------------------


def test_no_schedule_of_owners_loses_or_doubles_what_was_acknowledged() -> None:
    """EXPLORER_SCHEDULES and EXPLORER_FIRST_SEED choose other schedules than the first 12,000."""
    explore(FIRST_SEED, SCHEDULES)


def _never(*_: object) -> bool:
    return False


def _always(*_: object) -> bool:
    return True


def _nothing(*_: object) -> None:
    return None


MUTANTS = {
    "an owner that does not look for a newer one": (SimDisk, "exists", _never),
    "an owner that forgets that names can be removed": (SimDisk, "has_name", _always),
    "written rows that are acknowledged without a look": (WalFile, "is_fenced", _never),
    "a takeover that trusts its first reading": (local.LocalWal, "_has_block", _never),
    "a disk that does not sync": (SimDisk, "datasync", _nothing),
    "names that are not synced": (SimDisk, "sync_directory", _nothing),
    "a publisher that trusts a free number": (log, "newest_version", lambda *_: 0),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_explorer_finds_a_log_with_one_safeguard_less(
    mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, replacement = MUTANTS[mutant]
    for module, attribute in (
        (compaction, "seal"),
        (segment, "read_rows"),
        (manifest, "KEPT"),
    ):
        monkeypatch.setattr(module, attribute, getattr(module, attribute))
    explorer.install()
    monkeypatch.setattr(owner, name, replacement)
    assert any(explorer.explore(seed) for seed in range(1, 8000))


# -- two real processes on one directory -----------------------------------------------------------


def start_owner(root: Path, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SUPPORT / "log_owner.py"), str(root), STREAM, "t", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    """So many acknowledgements, as they come."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        lines: list[str] = []
        while len(lines) < count:
            assert selector.select(60), "the owner stopped"
            line = process.stdout.readline().decode()
            assert line, "the owner ended"
            lines.append(line.strip())
    return lines


def rest_of(process: subprocess.Popen[bytes]) -> list[str]:
    """The acknowledgements that it gave until it ended, cut lines left out."""
    assert process.stdout is not None
    with process.stdout:
        lines = process.stdout.read().decode().split("\n")[:-1]
    process.wait(60)
    return lines


async def check(root: Path, acknowledged: list[str]) -> None:
    store = open_store(root)
    last = await EventLog.open(store, STREAM, tenant_id="t", clock=SystemClock(), ids=SystemIds())
    rows = [row async for batch in last.rows() for row in batch]
    assert [row.seq for row in rows] == list(range(1, last.last_seq + 1))
    there = {f"{row.instance_id} {row.seq}" for row in rows}
    assert len({row.instance_id for row in rows}) == len(rows), "a row is there twice"
    assert set(acknowledged) - there == set()
    await last.close()
    await store.close()


async def test_a_process_that_takes_over_fences_the_living_one(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    owner = start_owner(tmp_path, "owner-0")
    acknowledged += read_lines(owner, 500)
    for number in range(1, 4):
        newer = start_owner(tmp_path, f"owner-{number}")
        acknowledged += read_lines(newer, 500)
        rest = rest_of(owner)
        assert owner.returncode == 0
        assert rest[-1] == "fenced -"
        acknowledged += rest[:-1]
        owner = newer
    owner.kill()
    acknowledged += rest_of(owner)
    await check(tmp_path, acknowledged)


async def test_a_killed_process_has_lost_nothing_it_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for number in range(4):
        owner = start_owner(tmp_path, f"owner-{number}")
        acknowledged += read_lines(owner, 300 + 350 * number)
        owner.kill()
        acknowledged += rest_of(owner)
    await check(tmp_path, acknowledged)


# -- one story each ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "memory"])
async def test_the_older_owner_learns_fenced_at_its_next_append(kind: str, tmp_path: Path) -> None:
    store: Store = LocalStore(tmp_path) if kind == "local" else MemoryStore()
    older = await opened(store, 1)
    await older.append([row("a")])
    newer = await opened(store, 2)
    assert (newer.epoch, newer.last_seq) == (older.epoch + 1, 1)
    with pytest.raises(Fenced, match="newer owner|superseded"):
        await older.append([row("b")])
    with pytest.raises(Fenced):
        await older.append([row("c")], durable=False)
    assert isinstance(older.failed, Fenced)
    with pytest.raises(Fenced):
        await older.seal()
    await newer.append([row("d")])
    assert [r.instance_id async for batch in newer.rows() for r in batch] in (
        ["a", "d"],
        ["a", "b", "d"],
    )
    await older.close()
    await newer.close()
    await store.close()


@pytest.mark.parametrize("kind", ["local", "memory"])
async def test_rows_written_but_not_synced_are_fenced_as_well(kind: str, tmp_path: Path) -> None:
    store: Store = LocalStore(tmp_path) if kind == "local" else MemoryStore()
    older = await opened(store, 1)
    newer = await opened(store, 2)
    with pytest.raises(Fenced):
        await older.append([row("a")], durable=False)
    await older.close()
    await newer.close()
    await store.close()


async def test_an_owner_that_slept_through_removals_is_still_fenced(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    older = await opened(store, 1)
    await older.append([row("a")])
    newer = await opened(store, 2)
    for number in range(12):
        await newer.append([row(f"b-{number}")])
        await newer.seal()
    names = sorted(entry.key[-3:] for entry in await store.list(f"{STREAM}/wal/"))
    assert "001" not in names, "the older owner's file is gone"
    assert "002" not in names, "and so is the one that fenced it"
    with pytest.raises(Fenced):
        await older.append([row("c")])
    stale = await opened(store, 3)
    await older.close()
    with pytest.raises(Fenced):
        await newer.publish(lambda manifest: manifest)
    await newer.close()
    await stale.close()
    await store.close()


async def test_a_manifest_number_that_was_removed_fences_nobody_in(tmp_path: Path) -> None:
    store = MemoryStore()
    older = await opened(store, 1)
    newer = await opened(store, 2)
    for number in range(12):
        await newer.append([row(f"b-{number}")])
        await newer.seal()
    removed = f"{STREAM}/manifest/{older.manifest.version + 1:020d}"
    assert removed not in store.objects
    with pytest.raises(Fenced):
        await older.publish(lambda manifest: manifest)
    again = await opened(store, 3)
    assert again.manifest.sealed_seq == newer.manifest.sealed_seq
    await older.close()
    await newer.close()
    await again.close()


@pytest.mark.parametrize("fault", [BEFORE, AFTER, DELAY])
@pytest.mark.parametrize("operation", ["create", "get", "get_range", "list"])
async def test_one_lost_request_or_reply_loses_and_doubles_nothing(
    operation: str, fault: str
) -> None:
    for nth in range(12):
        seen = 0

        def plan(op: str, _key: str, nth: int = nth) -> str | None:
            nonlocal seen
            seen += op == operation
            return fault if op == operation and seen == nth + 1 else None

        memory = MemoryStore()
        store = FaultStore(memory, plan)
        acknowledged = []
        try:
            owner = await opened(store, nth)
            for name in ("a", "b", "c"):
                await owner.append([row(name)])
                acknowledged.append(name)
            await owner.seal()
            await owner.append([row("d")])
            acknowledged.append("d")
        except Unavailable:
            assert operation != "create" or fault == DELAY, "creates are read back"
        last = await opened(memory, 99)
        names = [r.instance_id async for batch in last.rows() for r in batch]
        assert names[: len(acknowledged)] == acknowledged
        assert len(set(names)) == len(names)


async def test_half_an_object_under_our_name_is_damage_and_not_a_commit() -> None:
    memory = MemoryStore()
    is_torn = False
    store = FaultStore(memory, lambda op, _: TORN if is_torn and op == "create" else None)
    owner = await opened(store)
    await owner.append([row("a")])
    is_torn = True
    with pytest.raises((Corrupt, Unavailable)):
        await owner.append([row("b" * 600)])
    is_torn = False
    with pytest.raises((Corrupt, Unavailable)):
        await owner.append([row("c")])
    again = await opened(memory, 2)
    assert again.last_seq == 1
    assert again.torn is not None


async def test_two_owners_that_open_at_the_same_moment_end_with_one() -> None:
    memory = MemoryStore()
    store = FaultStore(memory, lambda _op, _key: DELAY, seed=5)
    results = await asyncio.gather(
        *(opened(store, seed) for seed in range(6)), return_exceptions=True
    )
    logs = [log for log in results if isinstance(log, EventLog)]
    assert all(isinstance(r, (EventLog, Fenced)) for r in results)
    assert len({log.epoch for log in logs}) == len(logs)
    newest = max(logs, key=lambda log: log.epoch)
    await newest.append([row("mine")])
    for log_ in logs:
        if log_ is not newest:
            with pytest.raises(Fenced):
                await log_.append([row("not mine")])
    assert newest.last_seq == 1
