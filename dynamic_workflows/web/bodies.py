"""Bodies: what requests carry, bounded in size and in time, and the JSON of responses."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..eventlog.codec import values
from .errors import HttpError

BODY_SECONDS_MAX = 30.0
"""A body that takes longer to arrive is refused."""


async def read_bytes(request: Request, bytes_max: int) -> bytes:
    """The body; raises `request.too_large` above `bytes_max`, and `request.too_slow`."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > bytes_max:
        raise _too_large(bytes_max)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for part in request.stream():
                body += part
                if len(body) > bytes_max:
                    raise _too_large(bytes_max)
    except TimeoutError:
        raise HttpError(
            f"the body did not arrive within {BODY_SECONDS_MAX:.0f} s", code="request.too_slow"
        ) from None
    except ClientDisconnect:
        raise asyncio.CancelledError from None
    return bytes(body)


def _too_large(bytes_max: int) -> HttpError:
    return HttpError(f"a body may have {bytes_max:,} bytes", code="request.too_large")


async def read_object(request: Request, bytes_max: int, *known: str) -> dict[str, msgspec.Raw]:
    """The body as a JSON object: from each key to its text; no body is an empty object.

    Raises `request.invalid` for what is no object, and for a key that is not `known`.
    """
    return object_of(await read_bytes(request, bytes_max), *known)


def object_of(body: bytes, *known: str) -> dict[str, msgspec.Raw]:
    """A body as a JSON object; see `read_object`."""
    if not body.strip():
        return {}
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise HttpError(f"the body is no JSON object: {error}") from None
    unknown = found.keys() - set(known)
    if unknown:
        raise HttpError(
            f"unknown key {', '.join(sorted(unknown))[:200]!r} in the body: use {', '.join(known)}"
        )
    return found


def value_of(text: msgspec.Raw | None) -> object:
    """The value that JSON text stands for, tags of the codec included; None for no text."""
    if text is None:
        return None
    # Without blanks, as the codec writes it: its tags are known by their exact beginnings.
    return values.decode(msgspec.json.format(bytes(text), indent=-1))


def plain_of(text: msgspec.Raw | None, kind: Any, name: str) -> Any:
    """JSON text as a plain value of a type; None for no text or null."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind | None)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise HttpError(f"{name}: {error}") from None


def json_of(value: object) -> msgspec.Raw:
    """A value as the JSON that the codec makes of it, to stand in a response."""
    return msgspec.Raw(values.encode(value))


def respond_json(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response in JSON; times are written as ISO 8601 in UTC."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")
