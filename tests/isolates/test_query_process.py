"""The process in which a tenant's statements run: whom it serves, and when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from histories import Writer, opened

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import InvalidError, QueryError
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.sql.engine import SqlEngine
from dynamic_workflows.loaders.sql.forwarding import StoreWindow
from dynamic_workflows.loaders.sql.messages import TROUBLE, SqlRead

COUNT = "select count(*) as n from events"


async def filled(store: Store, *tenants: str) -> Store:
    clock = VirtualClock()
    for name in tenants:
        async with opened(store, name, clock=clock) as log:
            await log.append(Writer(clock, "one").life())
            await log.seal()
    return store


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    return await filled(open_store(tmp_path / "log"), "acme")


def engine_of(reader: Reader) -> SqlEngine:
    return cast("SqlEngine", reader._engine)


def pid_of(reader: Reader) -> int:
    pid = engine_of(reader).pid
    assert pid is not None
    return pid


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def environment_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()


def has_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_statements_of_a_tenant_share_a_process_that_ends_with_the_reader(
    store: Store,
) -> None:
    reader = Reader(store, tenant="acme")
    reader.query(COUNT)
    pid = pid_of(reader)
    reader.query(COUNT)
    assert pid_of(reader) == pid != os.getpid()
    reader.close()
    wait_until(lambda: has_ended(pid))
    with pytest.raises(InvalidError, match="closed"):
        reader.query(COUNT)


async def test_two_tenants_never_share_a_process(tmp_path: Path) -> None:
    store = await filled(open_store(tmp_path / "log"), "acme", "other")
    readers = [Reader(store, tenant=name) for name in ("acme", "other")]
    for reader in readers:
        reader.query(COUNT)
    assert len({pid_of(reader) for reader in readers}) == 2
    for reader in readers:
        reader.close()


async def test_a_process_that_died_idle_is_replaced_without_a_word(store: Store) -> None:
    reader = Reader(store, tenant="acme")
    first = reader.query(COUNT).to_pylist()
    pid = pid_of(reader)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid))
    assert reader.query(COUNT).to_pylist() == first
    reader.close()


async def test_a_process_that_is_dying_while_a_query_is_sent_is_replaced_too(store: Store) -> None:
    reader = Reader(store, tenant="acme")
    first = reader.query(COUNT).to_pylist()
    for _ in range(2):
        os.kill(pid_of(reader), signal.SIGSTOP)  # it takes what is sent, and reads nothing of it
        killer = threading.Timer(0.2, os.kill, (pid_of(reader), signal.SIGKILL))
        killer.start()
        assert reader.query(COUNT).to_pylist() == first
    reader.close()


async def test_a_zygote_that_died_is_replaced_too(store: Store) -> None:
    reader = Reader(store, tenant="acme")
    first = reader.query(COUNT).to_pylist()
    zygote = engine_of(reader)._zygote
    assert zygote is not None
    zygote._process.kill()
    zygote._process.wait()
    wait_until(lambda: has_ended(pid_of(reader)))
    assert reader.query(COUNT).to_pylist() == first
    reader.close()


async def test_a_forked_program_asks_a_process_of_its_own(store: Store) -> None:
    reader = Reader(store, tenant="acme")
    reader.query(COUNT)
    before = pid_of(reader)
    forked = os.fork()
    if forked == 0:
        asked = [reader.query("select 'mine' as it").to_pylist() for _ in range(3)]
        is_own = pid_of(reader) != before
        reader.close()
        os._exit(0 if is_own and asked == [[{"it": "mine"}]] * 3 else 1)
    for _ in range(30):
        assert reader.query("select 'yours' as it").to_pylist() == [{"it": "yours"}]
    _, status = await asyncio.to_thread(os.waitpid, forked, 0)
    assert reader.query(COUNT).num_rows == 1
    assert (status, pid_of(reader)) == (0, before)
    reader.close()


async def test_a_process_that_dies_at_work_is_an_error_and_the_next_query_works(
    store: Store,
) -> None:
    reader = Reader(store, tenant="acme", timeout_s=60)
    reader.query(COUNT)
    killer = threading.Timer(0.5, os.kill, (pid_of(reader), signal.SIGKILL))
    killer.start()
    with pytest.raises(QueryError, match="memory|ended"):
        reader.query("select count(*) from range(10000000) a, range(10000000) b")
    assert reader.query(COUNT).num_rows == 1
    reader.close()


async def test_a_tenant_that_begins_later_is_seen_then(store: Store) -> None:
    reader = Reader(store, tenant="later")
    assert reader.query(COUNT).to_pylist() == [{"n": 0}]
    await filled(store, "later")
    assert reader.query(COUNT).to_pylist()[0]["n"] > 0
    reader.close()


def test_processes_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    program = (
        "import sys\n"
        "from dynamic_workflows.eventlog.query.reader import Reader\n"
        "reader = Reader(sys.argv[1], tenant='acme')\n"
        "reader.query('select 1')\n"
        "print(reader._engine.pid, reader._engine._zygote._process.pid, flush=True)\n"
        "reader.query('select count(*) from range(10000000) a, range(10000000) b')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(one) for one in process.stdout.readline().split()]
        process.kill()
    for pid in pids:
        wait_until(lambda pid=pid: has_ended(pid))  # type: ignore[misc]


async def test_a_query_that_uses_its_memory_leaves_the_next_one_all_of_it(store: Store) -> None:
    reader = Reader(store, tenant="acme", memory_mb=64)
    half = "select sum(length(x)) as n from (select repeat('x', 1000000) as x from range(20))"
    for _ in range(3):
        with pytest.raises(QueryError, match="[Mm]emory"):
            reader.query("select len(list(repeat('x', 1000) || range)) from range(10000000)")
        assert reader.query(half).to_pylist() == [{"n": 20_000_000}]
    reader.close()


async def test_a_process_gets_no_environment_of_its_program(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    reader = Reader(store, tenant="acme")
    reader.query(COUNT)
    zygote = engine_of(reader)._zygote
    assert zygote is not None
    assert b"a secret" not in environment_of(zygote._process.pid)
    reader.close()


async def test_the_window_on_a_store_shows_one_tenant_alone() -> None:
    import msgspec

    store = await filled(MemoryStore("memory://window"), "acme", "acme2")
    window = StoreWindow(store, "acme")
    (own,) = [e.key for e in await store.list("tenants/tenant=acme/events/")]
    (other,) = [e.key for e in await store.list("tenants/tenant=acme2/events/")]

    def ask(*read: Any) -> int:
        return window.answer(msgspec.msgpack.encode(SqlRead(*read)), until_s=time.monotonic() + 60)[
            0
        ]

    assert ask("get", own) != TROUBLE
    assert ask("get", f"{own}x") == TROUBLE
    for wish in (
        ("get", other),
        ("get", "tenants/tenant=acme/../tenant=acme2/x"),
        ("list", "tenants/"),
        ("list", "tenants/tenant=acme"),
        ("list", "tenants/tenant=acme2/"),
        ("range", own, -1, 5),
        ("range", own, 0, 1 << 40),
        ("put", own),
    ):
        with pytest.raises(EOFError):
            ask(*wish)


async def test_a_store_that_hangs_costs_a_query_its_limit_and_no_more() -> None:
    hanging = threading.Event()

    class HangingStore(MemoryStore):
        hangs = False

        def get_blocking(self, key: str) -> bytes:
            if self.hangs:
                hanging.wait(60)
            return super().get_blocking(key)

    store = HangingStore("memory://hanging")
    await filled(store, "acme")
    store.hangs = True
    reader = Reader(store, tenant="acme", timeout_s=0.5)
    with pytest.raises(QueryError) as caught:
        reader.query("from events")
    assert caught.value.code == "query.timed_out"
    hanging.set()
    reader.close()


async def test_without_walls_limits_still_hold(store: Store) -> None:
    reader = Reader(store, tenant="acme", timeout_s=1, memory_mb=128, isolation="unsafe-none")
    for sql in ("select lpad('x', 2000000000, 'y')", "from hot.tail"):
        with pytest.raises(QueryError):
            reader.query(sql)
    assert reader.query(COUNT).num_rows == 1
    reader.close()
