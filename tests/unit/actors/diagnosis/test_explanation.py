"""What `why` says of every state, with the error, the time and the remedy: live and from files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.claims import new_claim
from dynamic_workflows.actors.core.explanation import explain, remedy
from dynamic_workflows.actors.diagnosis.stored_explanation import explain_stored
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.actors.instances.index_entry import IndexEntry
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.protocol.contract import STATUSES
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

CODE = """
import asyncio
from dynamic_workflows import NonRetryableError, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await getattr(self, event.payload["do"])(step)

    async def complete(self, step):
        await step.do("one", lambda: 1)

    async def step_fails(self, step):
        for number in range(3):
            await step.do("charge", self.charge if number == 2 else lambda: 1,
                          config={"retries": {"limit": 1, "delay": 0}})

    def charge(self):
        raise ConnectionError("the bank\\x1b[2J is closed")

    async def run_fails(self, step):
        try:
            await step.do("charge", self.charge, config={"retries": {"limit": 0}})
        except ConnectionError as error:
            raise LookupError("no order") from error

    async def wait_fails(self, step):
        await step.wait_for_event("approval", type="approved", timeout="1 second")

    async def undoes(self, step):
        await step.do("one", lambda: 1, rollback=lambda past: None)
        raise ValueError("undo that")

    async def undoes_in_vain(self, step):
        await step.do("one", lambda: 1, rollback=self.undo,
                      rollback_config={"retries": {"limit": 0}})
        raise ValueError("undo that")

    def undo(self, past):
        raise OSError("stuck")

    async def wait(self, step):
        await step.do("one", lambda: 1, rollback=lambda past: None)
        await step.wait_for_event("approval", type="approved")

    async def sleep(self, step):
        await step.sleep("nap", "2 days")
"""

SAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "complete": ("complete", ("complete at 20", "result() answers its output")),
    "step_fails": (
        "errored",
        (
            "errored at 20",
            "with ConnectionError: the bank\\x1b[2J is closed",
            "in step 'charge' (3), attempt 2, at index.py:14",
            "restart(from_=...)",
        ),
    ),
    "run_fails": ("errored", ("with LookupError: no order; restart() runs it",)),
    "wait_fails": (
        "errored",
        ("with WorkflowTimeoutError: no event of type 'approved'", "in wait_for_event 'approval'"),
    ),
    "undoes": ("errored", ("with ValueError: undo that; its steps were rolled back",)),
    "undoes_in_vain": ("errored", ("ValueError: undo that; its rollback failed with", "stuck")),
    "terminated": ("terminated", ("terminated at 20", "by a call of terminate()")),
    "terminated_undoing": ("terminated", ("terminated at 20", "its steps were rolled back")),
    "paused": ("paused", ("it was paused at 20", "resume() lets it go on")),
    "stuck": (
        "run.stuck",
        ("parked at 20", "What to do: restart()", "pinned to the code", "create it anew"),
    ),
    "stuck_latest": ("run.stuck", ("parked at 20", "deploy code that is mended, then resume()")),
    "wait": ("waiting", ("it waits in 'approval' for an event of type 'approved' until 20",)),
    "sleep": ("waiting", ("it sleeps in 'nap' until 20",)),
}


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


async def bring_about(flows: WorkflowBinding, name: str, platform: LocalPlatform) -> None:
    """Make an instance of that name be in that state."""
    kind = name if name in CODE else "wait"
    instance = await flows.create(
        id=name, params={"do": kind}, pin="latest" if name.endswith("_latest") else None
    )
    async with asyncio.timeout(20):
        while kind == "wait" and (await instance.status()).status != "waiting":
            await platform.clock.settle()
    if name == "paused":
        await instance.pause()
    elif name.startswith("stuck"):
        tenant = await platform.tenant("acme")
        key = ("TenantWorkflow", name)
        message = "run awaits something that is no step"
        await tenant._commits.commit(
            tenant.core.park(key, "run.stuck", message, now_us=platform.virtual.now_us())
        )
    elif name.startswith("terminated"):
        await instance.terminate(rollback=name == "terminated_undoing")
    elif name == "wait_fails":
        await platform.clock.settle()
        await platform.clock.advance("2 seconds")
    async with asyncio.timeout(20):  # callbacks run in threads
        while (await instance.why()).code != SAYS[name][0]:
            await platform.clock.settle()


@pytest.mark.parametrize("name", SAYS)
async def test_why_says_what_happened_and_what_to_do_live_and_from_files(
    tmp_path: Path, name: str
) -> None:
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    flows = WorkflowBinding(platform.calls("acme"))
    await bring_about(flows, name, platform)
    live = await (await flows.get(name)).why()
    claim = new_claim("ns", is_embedded=True, address=None, now_us=0)
    read = await explain_stored(
        store, "acme", name, "TenantWorkflow", clock=platform.virtual, at_work=claim
    )
    await platform.close()
    code, parts = SAYS[name]
    assert (live.code, read.text) == (code, live.text.partition(" (in an isolate")[0])
    for part in parts:
        assert part in live.text
    assert "\x1b" not in live.text


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_every_status_has_a_sentence_even_when_nothing_is_loaded(status: str) -> None:
    summary = IndexEntry(("TenantWorkflow", "one"))
    summary.status, summary.ended_us = status, 1_000_000
    code, text = explain(summary, status, 2_000_000)
    assert code == status
    assert len(text) > 10


@pytest.mark.parametrize("code", ["run.stuck", "replay.mismatch", "isolate.died", "other.reason"])
@pytest.mark.parametrize("pin", ["hash", "latest"])
def test_every_reason_to_park_has_a_remedy_that_fits_the_pin(code: str, pin: str) -> None:
    summary: Any = IndexEntry(("TenantWorkflow", "one"))
    summary.code_hash = "abcdef" * 10
    summary.set("pin", None if pin == "hash" else pin)
    text = remedy(summary, code)
    assert ("create it anew" in text) == (pin == "hash")
    assert ("then resume()" in text) == (pin == "latest")
