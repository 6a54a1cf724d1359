"""What tests on real Ray share: tenant code, effects in a file, processes by title."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dynamic_workflows as dw

CODE = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        given = event.payload
        done = []
        for number in range(given.get("steps", 3)):
            done.append(await step.do(f"step {number}", self.work(event, number)))
            if given.get("sleep"):
                await step.sleep(f"rest {number}", given["sleep"])
        if given.get("wait"):
            approval = await step.wait_for_event("approval", type="approved")
            done.append(approval.payload)
        return {"id": event.instance_id, "done": done}

    def work(self, event, number):
        async def work(ctx):
            if hasattr(self.env, "EFFECTS"):
                await self.env.EFFECTS.note(event.instance_id, ctx.step.name, ctx.attempt)
            if event.payload.get("busy"):
                await asyncio.sleep(event.payload["busy"])
            return number * 10

        return work


class Default(WorkerEntrypoint):
    async def double(self, number):
        return number * 2
"""


class Effects(dw.Service):
    """Writes what a step did to a file, in one write, at once."""

    async def note(self, instance_id: str, step: str, attempt: int) -> None:
        line = f"{instance_id}\t{step}\t{attempt}\n".encode()
        file = os.open(self.props["path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def loader_of(path: Path | None = None) -> Callable[[str], dw.WorkerCode]:
    """A `load` callback; the effects of its tenants go to the file."""

    def load(tenant_id: str) -> dw.WorkerCode:
        if tenant_id == "broken":
            return dw.WorkerCode(main_module="index.py", modules={"index.py": "def ("})
        if tenant_id == "absent":
            raise LookupError("no such tenant")
        env = {} if path is None else {"EFFECTS": Effects(props={"path": str(path)})}
        return dw.WorkerCode(main_module="index.py", modules={"index.py": CODE}, env=env)

    return load


def effects(path: Path) -> Counter[tuple[str, str, int]]:
    """How often each attempt of each step of each instance ran."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter((i, s, int(a)) for i, s, a in (line.split("\t") for line in lines))


def expected(instance_id: str, steps: int) -> dict[str, Any]:
    """The right result of an instance."""
    return {"id": instance_id, "done": [number * 10 for number in range(steps)]}


async def check_effects(binding: dw.WorkflowBinding, path: Path, ids: list[str]) -> None:
    """No attempt ran twice, none ran unrecorded, and nothing ran after its step's outcome."""
    ran = effects(path)
    assert set(ran.values()) <= {1}, "an attempt ran twice"
    for instance_id in ids:
        started: set[tuple[str, int]] = set()
        completed: dict[str, int] = {}
        for event in await (await binding.get(instance_id)).history():
            if event.type == "attempt_started":
                assert event.step is not None
                assert event.step not in completed, "an attempt after the step's outcome"
                started.add((event.step, event.attempt))
            elif event.type == "attempt_completed":
                assert event.step is not None
                completed[event.step] = event.attempt
        mine = {(step, attempt) for (name, step, attempt) in ran if name == instance_id}
        assert mine <= started, "an attempt ran that was not recorded before"
        for step, attempt in completed.items():
            assert (step, attempt) in mine
            assert attempt == max(number for name, number in mine if name == step)


def processes(title: str, ancestor: int | None = None) -> list[int]:
    """The living descendants of a process (default: this one) with the text in their title."""
    wanted = title.encode()
    return [
        pid
        for pid in _descendants(ancestor or os.getpid())
        if wanted in _read(f"/proc/{pid}/cmdline")
    ]


def _descendants(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            if len(fields) > 1 and fields[0] != b"Z":
                children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(pid, ()))
    for child in found:
        yield child
        found.extend(children.get(child, ()))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"])


async def kill(pid: int) -> None:
    """kill -9, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(pid), what=f"the end of {pid}")


async def eventually(condition: Callable[[], Any], *, what: str, limit_s: float = 60) -> Any:
    """Wait for a condition, generously."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.05)
