"""Four tenants, one machine, one kill -9, and SQL at the end: `make demo`.

The tenants' code lies in `tenants/`. It is read when the platform asks for it, and runs in
isolates; nothing of it is imported here. The event log in `data/demo` outlives this program: what
an earlier run left unfinished goes on in the next one.
"""

from __future__ import annotations

from demo_interrupt import Interrupt

INTERRUPT = Interrupt() if __name__ == "__main__" else None

# ruff: noqa: E402  (Ctrl-C may come while these are imported)
import argparse
import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_processes import actor_of
from demo_screen import Screen

import dynamic_workflows as dw
from dynamic_workflows.eventlog import connect_duckdb

HERE = Path(__file__).resolve().parent
TENANTS = HERE / "tenants"
ENDED = ("complete", "errored", "terminated")

# What the platform grants each tenant: here, how patient to be. Days become seconds, for the show.
GRANTS: dict[str, dict[str, Any]] = {
    "onboarding": {"DECISION_TIMEOUT": "1 hour", "FIRST_DAY": "3 seconds"},
    "agent": {"APPROVAL_TIMEOUT": "1 hour"},
    "ci": {"RETRY_DELAY": "2 seconds"},
    "billing": {"GATEWAY_DELAY": "1 second", "DUNNING_DELAY": "5 seconds"},
}

# What people answer, by the type of event a workflow waits for.
ANSWERS: dict[str, dict[str, Any]] = {
    "decision": {"approved": True, "by": "Ines, compliance"},
    "approval": {"approved": True, "by": "Grace, finance"},
}

KILLED = "ci"
CONFIG = dw.PlatformConfig(tenant_idle_seconds=2, instance_idle_seconds=1, pool_size=1)


async def load(tenant_id: str) -> dw.WorkerCode:
    """A tenant's code: the Python files of its folder. Runs in the loader actor, when needed."""
    files = sorted((TENANTS / tenant_id).glob("*.py"))
    modules = {file.name: file.read_text(encoding="utf-8") for file in files}
    return dw.WorkerCode(main_module="index.py", modules=modules, env=GRANTS[tenant_id])


def work(tenant_id: str) -> list[dict[str, Any]]:
    """The tenant's work for today: a list of ids and params. A pushed folder becomes its files."""
    folder = TENANTS / tenant_id
    items: list[dict[str, Any]] = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    for item in items:
        for name, value in item["params"].items():
            if isinstance(value, dict) and "$folder" in value:
                root = folder / value["$folder"]
                paths = [
                    path for path in sorted(root.rglob("*")) if path.suffix in {".py", ".toml"}
                ]
                item["params"][name] = {
                    path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
                    for path in paths
                }
    return items


INSTANCES = """
    select tenant_id, instance_id, status, steps, output, error_name, error_message
    from instances order by tenant_id, created_at, instance_id
"""

SUMMARY = {
    "Instances, of all runs so far": """
        select tenant_id as tenant, status, count(*) as instances, sum(steps) as steps
        from instances group by all order by all
    """,
    "Slowest steps, sleeping and waiting aside": """
        select tenant_id as tenant, step, attempts,
               round(epoch_ms(ended_at) - epoch_ms(started_at)) as ms
        from steps where kind = 'do' and ended_at is not null
        order by ended_at - started_at desc, tenant, step limit 5
    """,
    "Attempts that failed": """
        select tenant_id as tenant, step, attempt, error_name as error, error_message as message,
               count(*) as times
        from attempts where status = 'errored' group by all order by all
    """,
    "Steps recorded, and steps recorded twice": """
        select count(*) as steps,
               count(*) - count(distinct (tenant_id, instance_id, step, count)) as twice
        from events where type = 'step_completed'
    """,
    "Owners that each tenant's log has had": """
        select tenant_id as tenant, max(epoch) as owners, max(seq) as events
        from events group by all order by all
    """,
}


@dataclass
class Seen:
    """How far the story has been told, tenant by tenant."""

    cursor: dict[str, int]

    def news(self, platform: dw.Platform) -> list[dict[str, Any]]:
        """The events since the last look, in the order of each tenant's log."""
        later = " or ".join("(tenant_id = ? and seq > ?)" for _ in self.cursor)
        rows: list[dict[str, Any]] = platform.query(
            "select tenant_id, seq, epoch, ts, instance_id, type, step, attempt, payload "
            f"from events where instance_id <> '' and ({later}) order by ts, tenant_id, seq",
            [part for pair in self.cursor.items() for part in pair],
        ).to_pylist()
        for row in rows:
            self.cursor[row["tenant_id"]] = max(self.cursor[row["tenant_id"]], row["seq"])
        return rows


class Demo:
    """The story: submit, watch, answer, kill one actor, and see that nothing is lost."""

    def __init__(self, platform: dw.Platform, screen: Screen) -> None:
        self.platform = platform
        self.screen = screen
        self.killed_pid = 0
        self.tasks: set[asyncio.Future[Any]] = set()

    async def tell(self) -> None:
        """Run until every instance has ended, this run's and those an earlier run left."""
        seen = Seen(dict.fromkeys(GRANTS, 0))
        before = await asyncio.to_thread(seen.news, self.platform)
        run = 1 + sum(
            row["tenant_id"] == "agent" and row["type"] == "workflow_queued" for row in before
        )
        if before:
            self.screen.say(f"run {run} on the same log: {len(before):,} events are there already")
        rows = (await asyncio.to_thread(self.platform.query, INSTANCES)).to_pylist()
        left_open = {row["instance_id"] for row in rows if row["status"] not in ENDED}
        for row in before:
            if row["instance_id"] in left_open:
                self.answer_later(row)
        submitting = asyncio.gather(*(self.submit(tenant, run) for tenant in GRANTS))
        self.tasks.add(submitting)
        while True:
            is_submitted = submitting.done()  # before the look, which may miss what comes after it
            if await self.look(seen) and is_submitted:
                return
            await asyncio.sleep(0.25)

    async def look(self, seen: Seen) -> bool:
        """Tell what is new and react to it; whether everything has ended."""
        for row in await asyncio.to_thread(seen.news, self.platform):
            self.screen.event(row)
            self.answer_later(row)
            if row["tenant_id"] == KILLED and row["type"] == "attempt_errored":
                self.kill_once()
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            task.result()
        instances = await asyncio.to_thread(self.platform.query, INSTANCES)
        rows = instances.to_pylist()
        self.screen.instances(rows)
        return bool(rows) and all(row["status"] in ENDED for row in rows)

    async def submit(self, tenant: str, run: int) -> None:
        """Create this run's instances of a tenant, all in one call."""
        items = [{**item, "id": f"{item['id']}-{run}"} for item in work(tenant)]
        await self.platform.tenant(tenant).workflows.create_batch(items)

    def answer_later(self, row: dict[str, Any]) -> None:
        """Be the people around the workflows."""
        if row["type"] == "wait_started":
            event_type = json.loads(row["payload"])["event_type"]
            answer = self.answer(row["tenant_id"], row["instance_id"], event_type)
            self.tasks.add(asyncio.create_task(answer))

    async def answer(self, tenant: str, instance_id: str, event_type: str) -> None:
        """A person thinks for a moment, then answers; a finished instance needs none."""
        await asyncio.sleep(1.5)
        instance = await self.platform.tenant(tenant).workflows.get(instance_id)
        if (await instance.status()).status not in ENDED:
            answer = ANSWERS[event_type]
            self.screen.say(f"{answer['by']} answers {tenant}/{instance_id}: {event_type}")
            await instance.send_event(event_type, answer)

    def kill_once(self) -> None:
        """kill -9 of the process that owns a tenant, while it has work in flight."""
        pid = None if self.killed_pid else actor_of(KILLED)
        if pid is not None:
            self.killed_pid = pid
            os.kill(pid, signal.SIGKILL)
            self.screen.alarm(f"kill -9 {pid}: the actor of tenant {KILLED!r} is gone, midway")


async def main(log: Path, screen: Screen, config: dw.PlatformConfig = CONFIG) -> int:
    """Tell the story, then let SQL tell it again."""
    started = time.monotonic()
    screen.say("starting Ray, a loader, a timer; the tenants' actors come when they have work")
    async with dw.connect(log, load=load, config=config) as platform:
        with screen:
            demo = Demo(platform, screen)
            await demo.tell()
        for title, sql in SUMMARY.items():
            screen.table(title, platform.query(sql))
    killed = f"one actor was killed (process {demo.killed_pid}); " if demo.killed_pid else ""
    screen.say(f"{killed}everything ended, in {time.monotonic() - started:.0f} s")
    await asyncio.to_thread(afterwards, log, screen)
    return 0 if demo.killed_pid else 1


def afterwards(log: Path, screen: Screen) -> None:
    """Ray is gone; the log is files, and anything that reads Parquet can read the sealed ones."""
    with connect_duckdb(log) as files:
        (events,) = files.sql("select count(*) from events").fetchall()[0]
    segments = sorted(
        log.glob("tenants/*/events/**/*.parquet"), key=lambda path: path.stat().st_mtime
    )
    screen.say(f"{events:,} events, {len(segments)} Parquet files, the newest of each tenant:")
    newest = {path.relative_to(log).parts[1]: path for path in segments}
    for path in newest.values():
        screen.say(f"  {path}")
    screen.say("`make demo` again goes on from the same log; to look into it:")
    screen.say(f'  .venv/bin/dynamic-workflows sql "from instances" --log {log}')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--log", type=Path, default=HERE.parent / "data" / "demo")
    parser.add_argument(
        "--isolation",
        choices=("sandbox", "unsafe-none"),
        default=CONFIG.isolation,
        help="unsafe-none: without walls, where the system has none (default: %(default)s)",
    )
    chosen = parser.parse_args()
    config = CONFIG.model_copy(update={"isolation": chosen.isolation})
    assert INTERRUPT is not None
    sys.exit(INTERRUPT.run(main(chosen.log, Screen(), config)))
