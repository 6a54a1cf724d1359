"""The application of the page on web applications, as printed: a reconnect loses nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from paths import ROOT

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.web.errors import status_of

PAGE = (ROOT / "docs" / "web-applications.md").read_text()
INTERNAL = {"tenant.moved", "store.not_found", "store.already_exists"}
"""Codes between our own parts, which no caller sees."""
CODE = """
from dynamic_workflows import WorkflowEntrypoint
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("one", lambda: event.payload)
"""


@pytest.fixture
def printed() -> dict[str, Any]:
    """What the page's program defines."""
    found: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], found)
    return found


def ids(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


async def test_the_application_streams_events_and_a_reconnect_loses_and_repeats_none(
    printed: dict[str, Any],
) -> None:
    def load(_: str) -> dw.WorkerCode:
        return dw.WorkerCode("i.py", {"i.py": CODE})

    app = printed["make_app"](lambda: testing.connect(load=load))
    async with _running(app) as client:
        made = await client.post("/acme/orders", json={"sku": "tea"})
        assert made.status_code == 201
        path = f"/acme/orders/{made.json()['id']}"
        whole = ids((await client.get(f"{path}/events")).text)
        assert len(whole) > 3
        assert (await client.get(path)).json() == {"status": "complete", "output": {"sku": "tea"}}
        for seen, last in enumerate(whole[:-1], 1):
            again = await client.get(f"{path}/events", headers={"Last-Event-ID": str(last)})
            assert ids(again.text) == whole[seen:]


async def test_the_application_answers_errors_by_their_code(printed: dict[str, Any]) -> None:
    def load(_: str) -> dw.WorkerCode:
        return dw.WorkerCode("i.py", {"i.py": "def ("})

    async with _running(printed["make_app"](lambda: testing.connect(load=load))) as client:
        missing = await client.get("/acme/orders/none")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "instance.not_found")
        bad = await client.post("/acme/orders", json={})
        assert (bad.status_code, bad.json()["error"]["code"]) == (422, "code.invalid")


@asynccontextmanager
async def _running(app: Any) -> Any:
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def test_the_table_has_every_code_with_the_status_that_the_program_gives(
    printed: dict[str, Any],
) -> None:
    table: dict[str, int] = {}
    for status, codes in re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE):
        table |= dict.fromkeys(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", codes), int(status))
    assert set(raised()) - INTERNAL <= set(table)
    assert {code: printed["status_of"](code) for code in table} == table
    assert {code: status_of(code) for code in table} == table, "the HTTP interface says otherwise"


def test_the_page_on_http_has_every_code_of_that_interface_alone() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    for path in (ROOT / "dynamic_workflows" / "web").rglob("*.py"):
        for code in re.findall(
            r'(?:default_code = |code=|respond\()"([a-z_.]+)"', path.read_text()
        ):
            assert f"`{code}`" in page or f"`{code}`" in PAGE, code


def raised() -> Iterator[str]:
    """Every code that the sources give to an error."""
    for folder in ("eventlog", "loaders", "actors", "dynamic_workflows"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name == "web":
                continue  # Its own codes stand in docs/http.md.
            codes = re.findall(
                r"""(?:default_code = |code=|_code: str = )"([a-z_.]+)\"""", path.read_text()
            )
            yield from codes
