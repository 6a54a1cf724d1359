"""W12: SQL over the logs of many tenants, and what sealing and merging cost the owner.

    python bench/w12_sql.py [--events 10_000_000] [--tenants 1000] [--log DIR] [--keep]

Segments are made as the log makes them (same writer, same manifests), without going through an
append for each row. Figures: seal throughput, bytes per event, group-bys over everything, one
instance's history, and the latency of durable appends while segments are merged and while SQL runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds, SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import (
    Manifest,
    encode_manifest,
    manifest_key,
    tenant_stream,
)
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.segments import segment
from dynamic_workflows.eventlog.segments.compaction import SegmentSwap, apply
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.open_store import open_store

START_US = 1_767_225_600_000_000
DAY_US = 86_400_000_000
SEGMENT_ROWS = 1_000_000

# One life: type, step, count, attempt, payload.
LIFE: list[tuple[str, str | None, int, int, str | None]] = [
    ("workflow_queued", None, 0, 0, '{"params":{"sku":"tea","n":1},"trigger":"create"}'),
    ("workflow_started", None, 0, 0, None),
    ("step_started", "price", 1, 0, '{"config":{}}'),
    ("attempt_started", "price", 1, 1, None),
    ("attempt_completed", "price", 1, 1, None),
    ("step_completed", "price", 1, 0, '{"output":{"ok":true,"n":1}}'),
    ("sleep_started", "cool off", 1, 0, '{"until_us":1767225660000000,"duration_ms":60000}'),
    ("workflow_waiting", None, 0, 0, None),
    ("sleep_completed", "cool off", 1, 0, None),
    ("workflow_completed", None, 0, 0, '{"output":{"total":42}}'),
]


def make_rows(tenant_id: str, instances: int, first_seq: int, rng: random.Random) -> pa.Table:
    """Lives of so many instances, spread over thirty days."""
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(instances)]
    rows = instances * len(LIFE)
    which = pa.array([i for i in range(instances) for _ in LIFE], pa.int32())
    part = pa.array(list(range(len(LIFE))) * instances, pa.int32())
    columns = list(zip(*LIFE, strict=True))

    def repeated(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.array(list(values), kind).take(part)

    begun = pc.multiply(which.cast(pa.int64()), 30 * DAY_US // max(instances, 1))
    ts = pc.add(pc.add(begun, START_US), pc.multiply(part.cast(pa.int64()), 1_500))
    constant = {
        "tenant_id": tenant_id,
        "epoch": 1,
        "workflow": "TenantWorkflow",
        "run": 1,
        "code_hash": "9f" * 32,
        "metadata": None,
        "blob": None,
    }
    payload = repeated(columns[4], pa.large_string())
    numbered = pc.binary_join_element_wise(
        '{"output":{"ok":true,"n":', which.cast(pa.string()), "}}", ""
    )
    made = {
        "seq": pa.array(range(first_seq, first_seq + rows), pa.int64()),
        "ts": ts.cast(segment.SCHEMA.field("ts").type),
        "instance_id": pa.array(ids).take(which),
        "type": repeated(columns[0], pa.string()),
        "step": repeated(columns[1], pa.string()),
        "count": repeated(columns[2], pa.int32()),
        "attempt": repeated(columns[3], pa.int32()),
        "payload": pc.if_else(pc.equal(part, 5), numbered.cast(pa.large_string()), payload),
    }
    arrays = [
        made[field.name]
        if field.name in made
        else pa.repeat(pa.scalar(constant[field.name], field.type), rows)
        for field in segment.SCHEMA
    ]
    return pa.table(arrays, schema=segment.SCHEMA)


@dataclass
class Made:
    """A log that was made for measuring."""

    rows: int
    bytes: int
    files: int
    seal_s: float
    samples: list[tuple[str, str]]
    """Some instances: tenant and id."""


async def make_log(root: Path, *, events: int, tenants: int) -> Made:
    """Write the segments and manifests of so many tenants."""
    store, ids, rng = open_store(root), SeededIds(1), random.Random(1)
    made = Made(0, 0, 0, 0.0, [])
    each = events // tenants // len(LIFE)
    for number in range(tenants):
        tenant_id = f"tenant-{number:04d}"
        manifest = Manifest(stream=tenant_stream(tenant_id), tenant_id=tenant_id, version=1)
        left = each
        while left:
            instances = min(left, SEGMENT_ROWS // len(LIFE))
            first = manifest.sealed_seq + 1
            table = make_rows(tenant_id, instances, first, rng)
            last = first + len(table) - 1
            begun = time.perf_counter()
            sealed = segment.seal(table, seq_min=first, seq_max=last, now_us=START_US)
            made.seal_s += time.perf_counter() - begun
            info = await segment.store_segment(store, manifest.stream, sealed, ids=ids)
            change = SegmentSwap(added=(info,), sealed_seq=last)
            manifest = apply(manifest, change, now_us=START_US)
            left -= instances
            made.rows += info.rows
            made.bytes += info.bytes
            made.files += 1
            if len(made.samples) < 40 and number % max(1, tenants // 40) == 0:
                made.samples.append((tenant_id, table.column("instance_id")[-1].as_py()))
        await store.create(manifest_key(manifest.stream, 1), encode_manifest(manifest))
    await store.close()
    return made


def timed(work: Callable[[], Any], *, times: int) -> tuple[float, float]:
    """Median and worst seconds, after one run that warms up."""
    work()
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken), max(taken)


QUERIES = {
    "events by type": "select type, count(*) from events group by 1",
    "events by tenant": "select tenant_id, count(*) from events group by 1",
    "steps by hour, last day": "select date_trunc('hour', ts), count(*) from events "
    "where type = 'step_completed' and ts >= timestamptz '2026-01-30' group by 1",
    "instances by status": "select status, count(*) from instances group by 1",
    "slowest steps": "select step, avg(ended_at - started_at) from steps group by 1",
}


def measure_queries(root: Path, made: Made, *, threads: int, memory_mb: int) -> None:
    begun = time.perf_counter()
    reader = Reader(root, threads=threads, memory_mb=memory_mb)
    reader.query("select 1")
    print(f"first look at the log              {time.perf_counter() - begun:8.2f} s")
    begun = time.perf_counter()
    reader.query(QUERIES["events by type"])
    print(f"first group-by (cold footers)      {time.perf_counter() - begun:8.2f} s")
    for name, sql in QUERIES.items():
        median, worst = timed(lambda sql=sql: reader.query(sql), times=3)  # type: ignore[misc]
        print(f"{name:34} {median:8.2f} s   worst {worst:.2f}")
    picks = random.Random(2).sample(made.samples, min(20, len(made.samples)))

    def history(tenant: str, instance: str) -> None:
        answer = reader.query(
            "from events where tenant_id = ? and instance_id = ? order by seq", [tenant, instance]
        )
        assert answer.num_rows == len(LIFE)

    report("history, platform's SQL", [one(history, *pick) for pick in picks])
    reader.close()
    one_tenant = Reader(root, tenant=picks[0][0])
    first = one(lambda: one_tenant.query("select 1"))
    print(f"a tenant's first, with the zygote  {first:8.2f} s")
    others = [Reader(root, tenant=tenant) for tenant in {pick[0] for pick in picks[1:6]}]
    report("other tenants' first", [one(other.query, "select 1") for other in others])
    for other in others:
        other.close()
    mine = [pick for pick in made.samples if pick[0] == picks[0][0]] * 10

    def own(_: str, instance: str) -> None:
        answer = one_tenant.query("from events where instance_id = ? order by seq", [instance])
        assert answer.num_rows == len(LIFE)

    report("history, tenant's SQL", [one(own, *pick) for pick in mine])
    fresh = (f"select {number}, count(*) from instances" for number in range(20))
    report("tenant's SQL, never seen before", [one(one_tenant.query, sql) for sql in fresh])
    one_tenant.close()


def one(work: Callable[..., object], *args: str) -> float:
    begun = time.perf_counter()
    work(*args)
    return time.perf_counter() - begun


def report(name: str, taken: list[float]) -> None:
    taken = sorted(taken)
    p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    print(f"{name:34} p50 {statistics.median(taken) * 1e3:7.2f} ms  p99 {p99 * 1e3:7.2f} ms")


async def measure_history(root: Path, made: Made) -> None:
    """As a tenant's actor reads it."""
    from dynamic_workflows.eventlog.wal.recovery import newest_manifest

    store = open_store(root)
    taken = []
    for tenant, instance in made.samples[:20]:
        newest = await newest_manifest(store, tenant_stream(tenant))
        assert newest is not None
        begun = time.perf_counter()
        rows = await segment.read_instance(
            store, newest.manifest.segments, "TenantWorkflow", instance
        )
        taken.append(time.perf_counter() - begun)
        assert len(rows) == len(LIFE)
    report("history, owner's reading", taken)
    await store.close()


# -- the owner ----------------------------------------------------------------------------------


def lives(count: int, names: random.Random) -> list[Row]:
    """Rows as the core appends them: folded where they can be."""
    rows = []
    for _ in range(count):
        name = f"{names.getrandbits(128):032x}"
        for kind, step, attempt, payload in (
            ("workflow_queued", None, 0, LIFE[0][4]),
            ("workflow_started", None, 0, None),
            ("step_started", "price", 1, LIFE[2][4]),
            ("step_completed", "price", 1, LIFE[5][4]),
            ("workflow_completed", None, 0, LIFE[9][4]),
        ):
            rows.append(
                Row(
                    type=kind,
                    workflow="TenantWorkflow",
                    instance_id=name,
                    ts=START_US,
                    step=step,
                    count=int(step is not None),
                    attempt=attempt,
                    payload=payload.encode() if payload else None,
                    code_hash="9f" * 32 if kind == "workflow_queued" else None,
                )
            )
    return rows


async def appends(log: EventLog, seconds: float, until: asyncio.Future[Any] | None) -> list[float]:
    """Latency of one durable append after the other, until the time is up or the work is done."""
    names, taken = random.Random(5), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end if until is None else not until.done():
        rows = lives(1, names)
        begun = time.perf_counter()
        await log.append(rows)
        taken.append(time.perf_counter() - begun)
        await asyncio.sleep(0.001)
    return taken


async def measure_owner(root: Path) -> None:
    config = LogConfig(auto_seal=False, compaction=CompactionConfig(fan_in=4))
    log = await EventLog.open(
        open_store(root),
        tenant_stream("busy"),
        tenant_id="busy",
        clock=SystemClock(),
        ids=SystemIds(),
        config=config,
    )
    names = random.Random(6)
    report("append alone", await appends(log, 3.0, None))
    for number in range(4):
        await log.append(lives(25_000, names))
        rows, begun = log.last_seq - log.manifest.sealed_seq, time.perf_counter()
        sealing = asyncio.ensure_future(log.seal())
        if number:
            report(f"append during seal {number}", await appends(log, 0, sealing))
        await sealing
        rate = rows / (time.perf_counter() - begun)
        print(f"seal of {rows} events            {rate:10,.0f} events/s")
    merging = asyncio.ensure_future(log.maintain())
    report("append during merge", await appends(log, 0, merging))
    await merging
    await log.close()


@contextmanager
def querying(root: Path) -> Iterator[None]:
    """SQL without pause in another thread, in a process of its own niceness."""
    code = (
        "import sys\nfrom dynamic_workflows.eventlog.query.reader import Reader\n"
        "reader = Reader(sys.argv[1])\n"
        f"while True: reader.query({QUERIES['events by type']!r})\n"
    )
    import sys

    process = subprocess.Popen([sys.executable, "-c", code, str(root)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def measure_interference(root: Path, other: Path) -> None:
    log = await EventLog.open(
        open_store(other),
        tenant_stream("quiet"),
        tenant_id="quiet",
        clock=SystemClock(),
        ids=SystemIds(),
    )
    alone = await appends(log, 4.0, None)
    with querying(root):
        await asyncio.sleep(2.0)
        beside = await appends(log, 4.0, None)
    report("append, no query", alone)
    report("append beside endless SQL", beside)
    await log.close()


def fdatasync_p50(directory: Path) -> float:
    """Milliseconds for 4 KB on this disk."""
    path = directory / "fdatasync"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(200):
            begun = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    path.unlink()
    return statistics.median(taken) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=lambda text: int(text.replace("_", "")), default=10**7)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-mb", type=int, default=4096)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--keep", action="store_true")
    chosen = parser.parse_args()
    root = chosen.log or Path(tempfile.mkdtemp(prefix="w12-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        print(f"commit {commit}, {os.cpu_count()} cores, {platform.machine()}, ", end="")
        print(f"fdatasync p50 {fdatasync_p50(root):.2f} ms, DuckDB threads {chosen.threads}")
        made = asyncio.run(make_log(root / "log", events=chosen.events, tenants=chosen.tenants))
        print(
            f"{made.rows:,} events of {chosen.tenants} tenants in {made.files} files: "
            f"{made.bytes / made.rows:.1f} bytes/event, "
            f"columns to Parquet {made.rows / made.seal_s:,.0f} events/s"
        )
        measure_queries(root / "log", made, threads=chosen.threads, memory_mb=chosen.memory_mb)
        asyncio.run(measure_history(root / "log", made))
        asyncio.run(measure_interference(root / "log", root / "quiet"))
        asyncio.run(measure_owner(root / "busy"))
    finally:
        if not chosen.keep:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    assert threading.active_count() == 1
    main()
