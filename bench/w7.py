"""W7: how long does a tenant nobody has seen before wait for its first step?

A new tenant id with new code, from `create` to the result of a one-step workflow in the driver's
hands: loading the code, an actor for the tenant, a log, an isolate, and the step, synced.
With the warm pool full, and with no warm pool at all.

`--trace` shows where the time goes: what happened when, in whichever process, in the median over
the tenants of a run. `--crowd N` asks another question: N such tenants at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from measure import Run, arguments, cluster, main, percentile, say

import dynamic_workflows as dw
from dynamic_workflows.eventlog import tracing

CODE = """
from dynamic_workflows import WorkflowEntrypoint

TENANT = {tenant!r}

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def one():
            return {{"ok": True, "tenant": TENANT}}

        return await step.do("one", one)
"""

QUESTION = "W7: a tenant never seen before, create to first result"
options = arguments(QUESTION)
options.add_argument("--tenants", type=int, default=20, help="how many a run, one after the other")
options.add_argument("--pause", type=float, default=1.5, help="seconds for the pool to fill again")
options.add_argument("--trace", action="store_true", help="print what happened when")
options.add_argument("--crowd", type=int, default=0, help="so many new tenants at once")
chosen = options.parse_args()


def code(tenant_id: str) -> dw.WorkerCode:
    """Other code for every tenant."""
    return dw.WorkerCode(
        main_module="index.py", modules={"index.py": CODE.format(tenant=tenant_id)}
    )


Span = tuple[int, int]
"""Beginning and end, in ns of the machine's monotonic clock."""


async def one_tenant(platform: dw.Platform, tenant: str) -> Span:
    """A tenant never seen before, from `create` to its first result."""
    start = time.perf_counter_ns()
    instance = await platform.tenant(tenant).workflows.create()
    tracing.mark("driver: has the instance")
    result = await instance.result(timeout=600)
    tracing.mark("driver: has the result")
    assert result == {"ok": True, "tenant": tenant}
    return start, time.perf_counter_ns()


async def one_by_one(platform: dw.Platform, tenants: list[str], *, pause_s: float) -> list[Span]:
    """The wait of each tenant, one after the other."""
    spans = []
    for tenant in tenants:
        await asyncio.sleep(pause_s)
        spans.append(await one_tenant(platform, tenant))
    return spans


def milliseconds(spans: Sequence[Span]) -> list[float]:
    """How long each took."""
    return [(end - start) / 1e6 for start, end in spans]


def timeline(folder: Path, spans: Sequence[Span]) -> list[tuple[float, str]]:
    """What happened in most of the spans, and when after their beginning in the median (ms)."""
    found: list[tuple[int, str]] = []
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            ns, _, what = line.partition(" ")
            found.append((int(ns), what))
    found.sort()
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    for start, end in spans:
        times: Counter[str] = Counter()
        for at, what in found:
            if start <= at <= end:
                times[what] += 1
                seen[what, times[what]].append((at - start) / 1e6)
    return sorted(
        (statistics.median(ms), what if time == 1 else f"{what} ({time})")
        for (what, time), ms in seen.items()
        if 2 * len(ms) > len(spans)
    )


def say_timeline(kind: str, folder: Path, spans: Sequence[Span]) -> None:
    """Print it, with what each stage took after the one before."""
    say(f"\n{kind}: ms after the call of `create`, and after the line before")
    before = 0.0
    for ms, what in timeline(folder, spans):
        say(f"{ms:9.2f} {ms - before:+8.2f}  {what}")
        before = ms


@contextlib.contextmanager
def marked() -> Iterator[Path]:
    """A folder where every process that starts from here on writes its marks."""
    with tempfile.TemporaryDirectory() as folder:
        tracing.begin(folder)
        yield Path(folder)
        tracing.end()


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[Run]:
    """Each run starts a platform of each kind, since both share the machine's one Ray."""
    numbers = itertools.count(1)

    async def run_kind(kind: str, pool: int, traces: Path | None) -> dict[tuple[str, str], float]:
        tenants = [f"new-{next(numbers)}" for _ in range(chosen.tenants if pool else 5)]
        config = dw.PlatformConfig(pool_size=pool)
        async with cluster(code, folder / f"{next(numbers)}", config) as platform:
            pause_s = chosen.pause if pool else 0
            spans = await one_by_one(platform, tenants, pause_s=pause_s)
        if traces is not None:
            say_timeline(kind, traces, spans)
        spent = milliseconds(spans)
        return {
            (f"{kind} p50", "ms"): percentile(spent, 50),
            (f"{kind} p99", "ms"): percentile(spent, 99),
        }

    async def run_crowd() -> dict[tuple[str, str], float]:
        tenants = [f"new-{next(numbers)}" for _ in range(chosen.crowd)]
        async with cluster(code, folder / f"{next(numbers)}") as platform:
            start = time.perf_counter()
            spans = await asyncio.gather(*(one_tenant(platform, tenant) for tenant in tenants))
            spent_s = time.perf_counter() - start
        return {
            ("crowd, first to last", "s"): spent_s,
            ("crowd, each p50", "s"): percentile(milliseconds(spans), 50) / 1e3,
            ("crowd, new tenants", "1/s"): len(tenants) / spent_s,
        }

    async def run() -> dict[tuple[str, str], float]:
        if chosen.crowd:
            return await run_crowd()
        with marked() if chosen.trace else contextlib.nullcontext() as traces:
            warm = await run_kind("pool warm", 4, traces)
            return warm | await run_kind("pool empty", 0, traces)

    yield run


if __name__ == "__main__":
    main(QUESTION, chosen, measured)
