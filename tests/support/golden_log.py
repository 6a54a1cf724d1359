"""Makes the golden log of the present schema version: `python tests/support/golden_log.py`.

A golden log is made once, when its version is new, and never again: the test reads what a release
wrote. It has sealed and hot rows, a merged segment, a deleted instance, a restart, a blob.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

from histories import Writer, opened
from paths import TESTS

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.log.event_log import LogConfig
from dynamic_workflows.eventlog.manifest import SCHEMA_VERSION
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.open_store import open_store

GOLDEN = TESTS / "golden"

CONFIG = LogConfig(auto_seal=False, compaction=CompactionConfig(fan_in=2, grace_s=0))

SQL = {
    "events": "from events order by tenant_id, seq",
    "instances": "from instances order by all",
    "steps": "from steps order by all",
    "attempts": "from attempts order by all",
    "waits": "from waits order by all",
}


async def write(root: Path) -> None:
    """A log with a little of everything."""
    store, clock = open_store(root), VirtualClock()
    async with opened(store, "acme", clock=clock, config=CONFIG) as log:
        done, gone = Writer(clock, "done"), Writer(clock, "gone")
        rows = [*done.life(output={"café": [1, None]}), *gone.life()]
        rows[3].blob = await log.put_blob(b'{"output": "' + b"x" * 70_000 + b'"}')
        await log.append(rows)
        await log.seal()
        again = Writer(clock, "again")
        rows = [*again.begin(), *again.do("a", 1), *again.do("b", 2)]
        rows.append(again.row("workflow_restarted", kept=[["do", "a", 1]]))
        again.run = 2
        await log.append([*rows, *again.begin(), *again.do("b", 3), *again.end("twice")])
        await log.seal()
        await log.maintain()
    async with opened(store, "acme", clock=clock, config=CONFIG) as log:
        late = Writer(clock, "late")
        error = {"name": "OSError", "message": "no"}
        until_us = clock.now_us() + 10**9
        await log.append(
            [
                *gone.delete(),
                *late.begin(),
                late.row("step_started", "s", attempt=1, config={}),
                late.row("attempt_errored", "s", attempt=1, error=error, retry_at_us=until_us),
                late.row("sleep_started", "nap", until_us=until_us, duration_ms=10**6),
                late.row("wait_started", "ask", event_type="yes", until_us=until_us, timeout_ms=1),
            ]
        )
    async with opened(store, "snow ☃", clock=clock, config=CONFIG) as log:
        await log.append(Writer(clock, "hot").life())


def answers(root: Path) -> dict[str, list[dict[str, object]]]:
    """What every view shows."""
    reader = Reader(root)
    found = {
        name: json.loads(json.dumps(reader.query(sql).to_pylist(), default=str))
        for name, sql in SQL.items()
    }
    reader.close()
    return found


if __name__ == "__main__":
    target = GOLDEN / f"v{SCHEMA_VERSION}"
    if target.exists():
        sys.exit(f"{target} exists: a golden log is never made again")
    asyncio.run(write(target / "log"))
    shutil.rmtree(target / "log" / "probe", ignore_errors=True)
    text = json.dumps(answers(target / "log"), indent=1, ensure_ascii=False)
    (target / "answers.json").write_text(text + "\n")
