"""CONTRIBUTING.md: short, its paths exist, each room stands in it, and its walks are walked."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from paths import ROOT
from tree import rooms

import dynamic_workflows as dw
from dynamic_workflows import testing

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
LINES_MAX = 80
BETWEEN_PROCESSES = ("actors/rpc/", "actors/cluster/", "actors/placement/")
"""Rooms that only a platform on Ray walks through; the platform of tests has none of them."""
INSTEAD = {
    "eventlog/wal/local.py": "eventlog/wal/object.py",
    "loaders/isolates/isolate_process.py": "loaders/isolates/inline.py",
}
"""What the platform of tests, in memory and in one process, has in their place."""
CODE = """
from dynamic_workflows import WorkflowEntrypoint

async def one() -> int:
    return 1

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("one", one)
"""


def walk(title: str) -> list[str]:
    """The files of a walk, in order."""
    section = PAGE.split(f"## The walk of {title}")[1].split("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert len(files) > 5
    return files


@asynccontextmanager
async def files_entered() -> AsyncIterator[list[str]]:
    """The files of ours whose functions are called meanwhile, in the order of their first call."""
    found: list[str] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(ROOT)):
            file = name.removeprefix(f"{ROOT}/").removeprefix("dynamic_workflows/")
            for shown in (file, f"dynamic_workflows/{file}"):
                if shown not in found:
                    found.append(shown)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def test_the_map_fits_on_a_page() -> None:
    assert len(PAGE.splitlines()) <= LINES_MAX


def test_every_path_in_the_map_exists() -> None:
    paths = re.findall(
        r"`((?:eventlog|loaders|actors|dynamic_workflows|docs|tests)/[\w/.-]*)`", PAGE
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_room_stands_in_the_map() -> None:
    assert [room for room in rooms() if f"`{room.replace('.', '/')}/`" not in PAGE] == []


async def test_the_walks_are_walked() -> None:
    async def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": CODE})

    async with testing.connect(load=load) as platform, files_entered() as entered:
        created = await platform.tenant("acme").workflows.create()
        assert await created.result() == 1
    for title in ("a `create`", "a step's result"):
        files = [INSTEAD.get(file, file) for file in walk(title)]
        here = [file for file in files if not file.startswith(BETWEEN_PROCESSES)]
        assert [file for file in here if file not in entered] == []
