"""Measuring: what every script here shares, so that a figure never stands without its surroundings.

A script asks one question. It runs the workload several times on one machine, with every durable
write really synced, and prints the median beside machine, commit and the disk's own speed.
`--append` adds the printed block to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import dynamic_workflows as dw

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "RESULTS.md"


@dataclass
class Figure:
    """One number that was asked for, once per run."""

    name: str
    unit: str
    per_run: list[float] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.per_run)


Run = Callable[[], Awaitable[dict[tuple[str, str], float]]]
"""One run of a workload: (name, unit) -> value."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that this many percent of the others do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def fdatasync_ms(folder: Path, *, times: int = 400) -> tuple[float, float]:
    """p50 and p99 of appending 4 KiB to a file and syncing it, in milliseconds."""
    block = os.urandom(4096)
    spent = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(times):
            start = time.perf_counter()
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
            spent.append((time.perf_counter() - start) * 1e3)
    return percentile(spent, 50), percentile(spent, 99)


@dataclass(frozen=True)
class Surroundings:
    """What a figure depends on and the script does not decide; others may use the machine, too."""

    disk_p50_ms: float
    disk_p99_ms: float
    load: float

    def __str__(self) -> str:
        return (
            f"fdatasync of 4 KiB p50 {self.disk_p50_ms:.2f} ms, p99 {self.disk_p99_ms:.2f} ms, "
            f"load average {self.load:.1f}"
        )


def surroundings(folder: Path) -> Surroundings:
    """As they are now, on the disk of the folder."""
    return Surroundings(*fdatasync_ms(folder), os.getloadavg()[0])


def processor() -> str:
    """The processor's name as the kernel knows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def machine() -> str:
    """What it ran on: cores, processor, kernel, interpreter, Ray."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = f"{platform.system()} {platform.release().partition('-')[0]}"
    return (
        f"{os.cpu_count()} cores, {processor()}, {memory_gb:.0f} GB, {kernel}, "
        f"Python {platform.python_version()}, Ray {version('ray')}"
    )


def commit() -> str:
    """The commit that was measured, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


@contextlib.asynccontextmanager
async def cluster(
    code: Callable[[str], dw.WorkerCode], folder: Path, config: dw.PlatformConfig | None = None
) -> AsyncIterator[dw.Platform]:
    """An embedded Ray with a fresh log and one tenant's worth of warmth."""
    async with dw.connect(folder / "log", load=code, config=config) as deployed:
        first = await deployed.tenant("warm-up").workflows.create()
        await first.result(timeout=60)
        yield deployed


def arguments(question: str) -> argparse.ArgumentParser:
    """The options every script has."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--runs", type=int, default=3, help="how often; the median counts")
    # Not /tmp: that is memory on some machines, and syncing it would cost nothing.
    folder = ROOT / ".cache" / "bench"
    parser.add_argument("--folder", type=Path, default=folder, help="where the log shall lie")
    parser.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    return parser


def shown(value: float) -> str:
    """Three or four digits that matter, without exponents."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def say(line: str) -> None:
    """To the terminal, at once."""
    print(line, flush=True)


def report(
    question: str,
    figures: dict[tuple[str, str], Figure],
    options: argparse.Namespace,
    before: Surroundings,
    after: Surroundings,
) -> str:
    """The block of figures with everything needed to judge them."""
    lines = [
        f"### {question}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}, {options.runs} runs",
        f"on {machine()};",
        f"before: {before};",
        f"after: {after}",
        "",
        "| figure | median | lowest | highest |",
        "|---|---|---|---|",
    ]
    for figure in figures.values():
        values = (figure.median(), min(figure.per_run), max(figure.per_run))
        cells = [f"{figure.name}, {figure.unit}", *map(shown, values)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


async def answer(
    question: str,
    options: argparse.Namespace,
    measured: Callable[[Path], contextlib.AbstractAsyncContextManager[Run]],
) -> None:
    """Run the workload, print the report, and append it if asked to."""
    figures: dict[tuple[str, str], Figure] = {}
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="run-") as name:
        folder = Path(name)
        before = surroundings(folder)
        async with measured(folder) as run:
            for number in range(1, options.runs + 1):
                for key, value in (await run()).items():
                    figures.setdefault(key, Figure(*key)).per_run.append(value)
                say(
                    f"run {number}: "
                    + ", ".join(
                        f"{f.name} {shown(f.per_run[-1])} {f.unit}" for f in figures.values()
                    )
                )
        text = report(question, figures, options, before, surroundings(folder))
    say("")
    say(text)
    if options.append:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + text)


def main(
    question: str,
    options: argparse.Namespace,
    measured: Callable[[Path], contextlib.AbstractAsyncContextManager[Run]],
) -> None:
    """What a script calls."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(answer(question, options, measured))
        return
    sys.exit(130)
