"""How fast is an isolate there, how much memory does it cost, and how fast is it gone?

From `start` to the first message of a step in tenant code: forked on demand (cold), and from a
blank isolate that waits (warm). Memory is what an isolate does not share with others (USS), with
fifty of them alive. Measured as the user who asks and, if that is root, as an ordinary user too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dynamic_workflows.loaders.isolates.interface import Exit, Isolation, Limits  # noqa: E402
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates  # noqa: E402
from dynamic_workflows.loaders.isolates.isolate_process import ProcessIsolate  # noqa: E402
from dynamic_workflows.loaders.protocol.messages import Load, Module, Run, StepRequest, pack  # noqa: E402

QUESTION = "Isolates: start to first step, memory, end"
ORDINARY = 64_992
OVER = Exit("over", is_tenants_own=False, kind="closed")
CODE = b"""
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("one", lambda: 1)
"""
LOAD = pack(Load("index.py", [Module("index.py", "py", CODE)], []))
RUN = pack(Run("TenantWorkflow", "one", b"null", 0, []), life=1)
STEP = pack(StepRequest(0, "", 0, b""))[0]
SPIN = pack(Load("index.py", [Module("index.py", "py", b"import time\nwhile True: pass")], []))


class Started:
    """An isolate on its way to its first step."""

    def __init__(self) -> None:
        self.step: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.isolate: ProcessIsolate

    def on_frames(self, frames: list[Any]) -> None:
        if not self.step.done() and any(kind == STEP for kind, _, _ in frames):
            self.step.set_result(None)

    async def begin(self, made: ProcessIsolates, limits: Limits | None = None) -> float:
        """Milliseconds to the first step."""
        begin = time.perf_counter()
        self.isolate = await made.start(
            limits=limits or Limits(),
            on_frames=self.on_frames,
            on_exit=self.end.set_result,
            first=[LOAD],
        )
        self.isolate.send([RUN])
        await self.step
        return (time.perf_counter() - begin) * 1e3

    async def stop(self) -> None:
        self.isolate.kill(OVER)
        await self.end


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


async def one_by_one(made: ProcessIsolates, starts: int, *, warm: bool) -> list[float]:
    spent = []
    for _ in range(starts):
        if warm:
            while len(made._blanks) < 2:  # noqa: ASYNC110 - the pool fills in the background
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.01)
        started = Started()
        spent.append(await started.begin(made))
        await started.stop()
    return spent


def uss_mb(pid: int) -> float:
    """Memory that this process shares with nobody."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = [int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")]
    return sum(sizes) / 1024


async def many(made: ProcessIsolates, count: int) -> dict[str, float]:
    """So many at once."""
    begin = time.perf_counter()
    crowd = [Started() for _ in range(count)]
    await asyncio.gather(*(started.begin(made) for started in crowd))
    found = {f"{count} starts at once, ms": (time.perf_counter() - begin) * 1e3}
    # The walls hide an isolate's memory map from all but root.
    with contextlib.suppress(PermissionError):
        sizes = [uss_mb(started.isolate.pid or 0) for started in crowd]
        found["USS of an isolate p50, MB"] = percentile(sizes, 50)
        spawner = made._spawner
        assert spawner is not None
        found["USS of the zygote, MB"] = uss_mb(spawner.pid)
    await asyncio.gather(*(started.stop() for started in crowd))
    return found


async def spin_ms(made: ProcessIsolates, times: int) -> list[float]:
    """From a spin's begin to the news of its end, with a limit of 100 ms."""
    spent = []
    for _ in range(times):
        end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        isolate = await made.start(
            limits=Limits(turn_cpu_ms=100), on_frames=lambda frames: None, on_exit=end.set_result
        )
        begin = time.perf_counter()
        isolate.send([SPIN])
        await end
        spent.append((time.perf_counter() - begin) * 1e3)
    return spent


async def orphans_ms() -> float:
    """From the kill -9 of a supervisor to the end of its last process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--orphans"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pidfds = [os.pidfd_open(int(pid)) for pid in (await process.stdout.readline()).split()]
    begin = time.perf_counter()
    process.send_signal(signal.SIGKILL)
    for pidfd in pidfds:
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, gone.set)
        await gone.wait()
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
    spent = (time.perf_counter() - begin) * 1e3
    await process.wait()
    return spent


async def be_orphaned() -> None:
    made = ProcessIsolates(Isolation(warm=0))
    crowd = [Started() for _ in range(10)]
    await asyncio.gather(*(started.begin(made) for started in crowd))
    pids = [started.isolate.pid for started in crowd]
    print(*pids, made._spawner.pid if made._spawner else "", flush=True)
    await asyncio.sleep(600)


async def figures(starts: int) -> dict[str, float]:
    """Every figure, once."""
    begin = time.perf_counter()
    found: dict[str, float] = {}
    made = ProcessIsolates(Isolation(warm=0))
    await made.ready()
    found["zygote ready, ms"] = (time.perf_counter() - begin) * 1e3
    for name, spent in (
        ("start to first step, cold", await one_by_one(made, starts, warm=False)),
        ("spin to its end (limit 100 ms)", await spin_ms(made, 10)),
    ):
        found[f"{name} p50, ms"] = percentile(spent, 50)
        found[f"{name} p99, ms"] = percentile(spent, 99)
    found.update(await many(made, 50))
    await made.close()
    made = ProcessIsolates(Isolation(warm=3))
    spent = await one_by_one(made, starts, warm=True)
    await made.close()
    found["start to first step, warm p50, ms"] = percentile(spent, 50)
    found["start to first step, warm p99, ms"] = percentile(spent, 99)
    orphans = [await orphans_ms() for _ in range(5)]
    found["supervisor's kill -9 to last process gone, largest of 5, ms"] = max(orphans)
    return found


def users() -> dict[str, dict[str, Any]]:
    """Options of subprocess for each user to measure as."""
    if os.geteuid() != 0:
        return {"user": {}}
    return {
        "root": {},
        "user": {"user": ORDINARY, "group": ORDINARY, "extra_groups": [], "cwd": "/"},
    }


def python_for(options: dict[str, Any], environment: dict[str, str]) -> str | None:
    """An interpreter that this user can reach."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}"):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import msgspec"]
            done = subprocess.run(command, env=environment, capture_output=True, **options)
            if done.returncode == 0:
                return python
    return None


async def run() -> dict[tuple[str, str], float]:
    """One run, as each user."""
    places = [str(ROOT), *(path for path in sys.path if path)]
    environment = {"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    found: dict[tuple[str, str], float] = {}
    for name, options in users().items():
        python = python_for(options, environment)
        if python is None:
            print(f"no interpreter that an ordinary {name} can reach")
            continue
        command = [python, __file__, "--raw", str(chosen.starts)]
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=subprocess.PIPE, **options
        )
        output, _ = await process.communicate()
        for figure, value in json.loads(output).items():
            text, _, unit = figure.rpartition(", ")
            found[f"{text}, as {name}", unit] = value
    return found


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Needs no folder: an isolate writes nothing."""
    yield run


if __name__ == "__main__":
    if "--orphans" in sys.argv:
        asyncio.run(be_orphaned())
    elif "--raw" in sys.argv:
        print(json.dumps(asyncio.run(figures(int(sys.argv[-1])))))
    else:
        from measure import arguments, main

        parser = arguments(QUESTION)
        parser.add_argument("--starts", type=int, default=200, help="one by one, of each kind")
        chosen = parser.parse_args()
        main(QUESTION, chosen, measured)
