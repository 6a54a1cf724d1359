"""Queries: SQL over HTTP, answered as JSON, CSV or Arrow."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .access import Access
from .bodies import plain_of, read_object, respond_json
from .errors import HttpError
from .keys import READ

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"


async def over_all(request: Request) -> Response:
    """POST /v1/query: `{"sql", "params"?}` over all tenants."""
    access = Access(request, READ)
    return await _answer(access, access.platform.query)


async def over_tenant(request: Request) -> Response:
    """POST …/query: `{"sql", "params"?}` over one tenant's rows, in a process of its own."""
    access = Access(request, READ)
    return await _answer(access, access.tenant.query)


async def _answer(access: Access, query: Any) -> Response:
    fields = await read_object(access.request, access.service.body_bytes_max, "sql", "params")
    sql = plain_of(fields.get("sql"), str, "sql")
    if not sql:
        raise HttpError('the body is {"sql": …, "params": […] or {…}}')
    params = plain_of(fields.get("params"), list[Any] | dict[str, Any], "params")

    async def work() -> Response:
        # A thread cannot be ended: a query that nobody waits for ends by its own time limit.
        table = await asyncio.to_thread(query, sql, params)
        return await asyncio.to_thread(_rendered, table, access.request.headers.get("accept", ""))

    return await access.while_asked(work)


def _rendered(table: pa.Table, accept: str) -> Response:
    if ARROW in accept:
        import pyarrow as pa

        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return Response(sink.getvalue(), media_type=ARROW)
    from ..eventlog.query.render import render

    if "text/csv" in accept:
        return Response(render(table, "csv"), media_type="text/csv; charset=utf-8")
    rows = msgspec.Raw(_text(render(table, "json")).encode())
    return respond_json({"columns": table.column_names, "items": rows, "cursor": None})


def _text(rendered: str | bytes) -> str:
    assert isinstance(rendered, str)
    return rendered
