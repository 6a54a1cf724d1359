"""W9: many tenants, each with a few instances of a few steps, and room for few of them at once.

    python bench/w9.py [--tenants 100] [--instances 10] [--steps 5] [--room 16] [--per-process 1000]

Prints tenants per second, the worker processes that were started, and the peak memory of all
processes. `--per-process 1` never uses a process again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import dynamic_workflows as dw

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        for number in range(event.payload):
            await step.do(f"step {number}", lambda: number)
"""


def descendants() -> list[int]:
    """Return the processes that this one has started, directly or not."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def own_mb(pids: list[int]) -> float:
    """Return the memory of these processes in MB, shared pages counted in proportion."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def is_worker(pid: int) -> bool:
    """Return whether it is the process of a tenant actor."""
    try:
        return b"ray::TenantActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("tenants", 100), ("instances", 10), ("steps", 5), ("room", 16), ("per-process", 1_000)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    peak_mb, workers = 0.0, set[int]()

    async def watch() -> None:
        nonlocal peak_mb
        while True:
            pids = descendants()
            workers.update(pid for pid in pids if is_worker(pid))
            peak_mb = max(peak_mb, own_mb(pids))
            await asyncio.sleep(1.0)

    async def serve(platform: dw.Platform, number: int) -> None:
        flows = platform.tenant(f"t{number}").workflows
        made = await flows.create_batch(
            [{"id": f"i{n}", "params": asked.steps} for n in range(asked.instances)]
        )
        for instance in made:
            await instance.result()

    with tempfile.TemporaryDirectory() as folder:
        config = dw.PlatformConfig(
            tenants_resident_max=asked.room, tenants_per_process=asked.per_process
        )
        load = lambda tenant_id: dw.WorkerCode("i.py", {"i.py": CODE})  # noqa: E731
        async with dw.connect(Path(folder) / "log", load=load, config=config) as platform:
            watching = asyncio.ensure_future(watch())
            began_s = time.monotonic()
            await asyncio.gather(*(serve(platform, number) for number in range(asked.tenants)))
            took_s = time.monotonic() - began_s
            watching.cancel()
    print(
        f"{asked.tenants} tenants in {took_s:.1f} s: {asked.tenants / took_s:.2f} tenants/s, "
        f"{len(workers)} worker processes seen, peak {peak_mb:,.0f} MB"
    )


if __name__ == "__main__":
    asyncio.run(main())
