"""Streams: the events of an instance as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..eventlog.errors import LimitExceededError, WorkflowsError
from ..loaders.sdk.records import Event
from .access import Access
from .bodies import json_of
from .errors import HttpError
from .keys import READ

HEARTBEAT_S = 15.0
"""How often a silent stream says that it is alive, so that proxies keep it."""


async def stream(request: Request) -> Response:
    """GET …/instances/{id}/stream: its events from the start, then live ones, to the run's end.

    `Last-Event-ID` (or `cursor` in the query) is the `seq` of the last event that the client has:
    going on with it, nothing is lost and nothing comes twice.
    """
    access = Access(request, READ, in_query=True)
    cursor = _cursor(request)
    instance = await access.instance()
    service = access.service
    if service.streams >= service.streams_max:
        raise LimitExceededError(f"{service.streams_max:,} streams are open", retry_after=5)
    service.streams += 1
    events = instance.subscribe(cursor=cursor)

    async def frames() -> AsyncIterator[bytes]:
        try:
            yield b": open\n\n"
            async for frame in _with_heartbeats(events):
                yield frame
        finally:
            service.streams -= 1

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames(), 200, headers, "text/event-stream")


async def _with_heartbeats(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    coming: asyncio.Future[Event] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({coming}, timeout=HEARTBEAT_S)
            if not done:
                yield b": alive\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            except WorkflowsError as error:
                yield _frame("error", {"code": error.code, "message": str(error.message)})
                return
            coming = None
            yield _frame(event.type, _shown(event), event.seq)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


def _shown(event: Event) -> dict[str, object]:
    return {
        "seq": event.seq, "ts": event.ts, "type": event.type, "run": event.run,
        "step": event.step, "count": event.count, "attempt": event.attempt,
        "payload": json_of(event.payload),
    }  # fmt: skip


def _frame(kind: str, data: object, seq: int | None = None) -> bytes:
    """One event; JSON holds no line break, so a tenant's text cannot begin a field."""
    lines = [] if seq is None else [f"id: {seq}".encode()]
    lines += [b"event: " + kind.encode(), b"data: " + msgspec.json.encode(data)]
    return b"\n".join(lines) + b"\n\n"


def _cursor(request: Request) -> int:
    text = request.headers.get("last-event-id") or request.query_params.get("cursor") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise HttpError(f"the cursor is the seq of an event, not {text[:100]!r}")
    return int(text)
