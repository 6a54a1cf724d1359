"""The application of the page on web applications, as printed: a reconnect loses nothing."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import dynamic_workflows as dw
from dynamic_workflows import testing

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "web-applications.md").read_text()
CODE = """
from dynamic_workflows import WorkflowEntrypoint
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("one", lambda: 1)
"""


async def get(app: Any, path: str, last: str = "0") -> tuple[int, list[int]]:
    """The status of the answer and the ids of its events."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"last-event-id", last.encode())]}
    await app(scope, None, send)
    body = b"".join(one.get("body", b"") for one in sent).decode()
    return sent[0]["status"], [int(one) for one in re.findall(r"^id: (\d+)$", body, re.MULTILINE)]


async def test_the_application_streams_events_and_a_reconnect_loses_and_repeats_none() -> None:
    found: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], found)
    async with testing.connect(load=lambda _: dw.WorkerCode("i.py", {"i.py": CODE})) as platform:
        await (await platform.tenant("acme").workflows.create(id="one")).result()
        app = found["make_app"](lambda: _Opened(platform))
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        life = asyncio.ensure_future(app({"type": "lifespan"}, inbox.get, outbox.put))
        inbox.put_nowait({"type": "lifespan.startup"})
        assert (await outbox.get())["type"] == "lifespan.startup.complete"
        status, ids = await get(app, "/acme/one")
        assert (status, len(ids) > 3) == (200, True)
        assert (await get(app, "/acme/one", str(ids[1])))[1] == ids[2:]
        assert (await get(app, "/acme/two"))[0] == 404
        inbox.put_nowait({"type": "lifespan.shutdown"})
        await life


class _Opened:
    def __init__(self, platform: Any) -> None:
        self._platform = platform

    async def __aenter__(self) -> Any:
        return self._platform

    async def __aexit__(self, *_: object) -> None:
        pass


def test_the_table_has_the_code_of_every_class_of_errors() -> None:
    table = PAGE[PAGE.index("## Codes and statuses") :]
    kinds: list[Any] = [dw.WorkflowsError, *_below(dw.WorkflowsError)]
    own = [kind for kind in kinds if kind.__module__.endswith("eventlog.errors")]
    assert len(own) > 15
    for kind in own:
        assert f"`{kind.default_code}`" in table, kind


def _below(kind: type[Any]) -> list[type[Any]]:
    return [one for child in kind.__subclasses__() for one in (child, *_below(child))]
