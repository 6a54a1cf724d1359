"""No statement of the catalogue gets a tenant out of its rows, and none takes more than it may."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from histories import Writer, opened
from paths import DOCS

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import QueryError
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store

from .sql_catalogue import ATTACKS, EXHAUSTING, READING, TELLING, WRITING

DOCS = DOCS / "isolation.md"
TIMEOUT_S, MEMORY_MB = 1.0, 128
LATE_S = 20.0
"""A machine that does ten other things takes longer to end a process; without limits these take
minutes or gigabytes."""


@dataclass
class Log:
    """A log of two tenants, and what the attacks know of it."""

    store: Store
    fill: Callable[[str], str]
    place: Path

    async def contents(self) -> dict[str, bytes]:
        return {entry.key: await self.store.get(entry.key) for entry in await self.store.list("")}


@pytest.fixture
async def log(tmp_path: Path) -> Log:
    store = open_store(tmp_path / "log")
    clock = VirtualClock()
    for name in ("acme", "evil"):
        async with opened(store, name, clock=clock) as stream:
            await stream.append(Writer(clock, f"{name}-cold").life(output=f"secret of {name}"))
            await stream.seal()
            await stream.append(Writer(clock, f"{name}-hot").life(output=f"secret of {name}"))
    place = tmp_path / "place"
    place.mkdir(mode=0o777)
    segments = [entry.key for entry in await store.list("tenants/") if "parquet" in entry.key]
    (own,) = [str(store.local_path(key)) for key in segments if "evil" in key]
    (other,) = [str(store.local_path(key)) for key in segments if "acme" in key]
    names = {"own": own, "other": other, "root": store.root, "dir": str(place)}

    def fill(sql: str) -> str:
        return sql.format(
            **names,
            doubling=doubling(),
            columns=", ".join(f"repeat('x', 1000) as c{n}" for n in range(500)),
            thousand=", ".join(map(str, range(1000))),
            megabytes="x" * 3_000_000,
            brackets="(" * 100_000 + "1" + ")" * 100_000,
            numbers=" + ".join(["1"] * 60_000),
        )

    return Log(store, fill, place)


def doubling() -> str:
    first = "c0 as (select 1 as x)"
    more = (f"c{n} as (from c{n - 1} union all from c{n - 1})" for n in range(1, 22))
    return ", ".join([first, *more])


def test_each_attack_has_a_name_of_its_own() -> None:
    assert len({(one.group, one.name) for one in ATTACKS}) == len(ATTACKS) > 100


async def test_nothing_is_written_read_or_learnt(log: Log) -> None:
    python_variable = [1]
    assert python_variable
    before = await log.contents()
    reader = Reader(log.store, tenant="evil")
    opened_up, words = [], []
    for attack in [*WRITING, *READING, *TELLING]:
        try:
            reader.query(log.fill(attack.sql))
            opened_up.append(attack.name)
        except QueryError as error:
            words.append(error.message)
        tenants = reader.query("select distinct tenant_id, count(*) from events group by 1")
        assert tenants.num_rows == 1, attack.name
    reader.close()
    assert opened_up == []
    assert await log.contents() == before
    assert list(log.place.iterdir()) == []
    for one in words:
        assert log.store.root not in one.replace(log.fill("{own}"), "").replace(
            log.fill("{other}"), ""
        ).replace(log.fill("{root}"), ""), one


async def test_no_statement_takes_more_than_it_may(log: Log) -> None:
    reader = Reader(log.store, tenant="evil", timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
    reader.query("select 1")
    took: dict[str, tuple[float, int]] = {}
    for attack in EXHAUSTING:
        sql, before, begun_s = log.fill(attack.sql), own_bytes(), time.monotonic()
        with contextlib.suppress(QueryError):  # some answer within their limits
            reader.query(sql)
        took[attack.name] = time.monotonic() - begun_s, own_bytes() - before
        ok = reader.query("select count(*) > 0 as ok from events").to_pylist()
        assert ok == [{"ok": True}], attack.name
    reader.close()
    late = {name for name, (seconds, _) in took.items() if seconds > TIMEOUT_S + LATE_S}
    large = {name for name, (_, size) in took.items() if size > 2 * MEMORY_MB << 20}
    assert (late, large) == (set(), set())


def own_bytes() -> int:
    """The memory of this process: what a statement takes must not be taken here."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_parameters_are_bounded_too(log: Log) -> None:
    reader = Reader(log.store, tenant="evil", timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
    with pytest.raises(QueryError, match="parameters"):
        reader.query("select ?", ["x" * 100_000_000])
    with pytest.raises(QueryError, match="parameter"):
        reader.query("select ?", [object()])
    assert reader.query("select ? as x", ["y"]).to_pylist() == [{"x": "y"}]
    reader.close()


def test_the_docs_name_every_group_and_what_closes_it() -> None:
    text = DOCS.read_text()
    for group in {one.group for one in ATTACKS}:
        count = sum(one.group == group for one in ATTACKS)
        assert f"| {group} | {count} |" in text, group
