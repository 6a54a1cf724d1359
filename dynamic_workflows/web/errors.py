"""Errors: which HTTP status each code of the Python API has, and how an error is answered."""

from __future__ import annotations

import logging
import math
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..eventlog.errors import WorkflowsError

STATUSES = {
    "instance.not_found": 404,
    "step.not_found": 404,
    "tenant.not_found": 404,
    "log.not_found": 404,
    "route.not_found": 404,
    "route.method_not_allowed": 405,
    "key.missing": 401,
    "key.invalid": 401,
    "key.forbidden": 403,
    "idempotency.": 409,
    "request.too_large": 413,
    "request.too_slow": 408,
    "instance.invalid_id": 400,
    "instance.": 409,
    "value.too_large": 413,
    "code.": 422,
    "code.load_failed": 503,
    "limit.exceeded": 429,
    "query.timed_out": 504,
    "platform.": 503,
    "log.fenced": 503,
    "log.": 500,
    "isolation.": 500,
    "internal": 500,
    "isolate.died": 502,
    "call.unanswered": 504,
}
"""By code; "instance." stands for every code that begins so and has no entry of its own."""

_log = logging.getLogger(__name__)


class HttpError(WorkflowsError):
    """A request that this interface refuses by itself."""

    default_code = "request.invalid"


def status_of(code: str) -> int:
    """The HTTP status of an error's code; 400 where none is named."""
    return STATUSES.get(code) or STATUSES.get(code.partition(".")[0] + ".") or 400


def respond(code: str, message: str, details: dict[str, Any] | None = None) -> Response:
    """The response for an error."""
    headers = {}
    status = status_of(code)
    retry_after = (details or {}).get("retry_after")
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after or 1)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": {"code": code, "message": message}}
    return Response(msgspec.json.encode(body), status, headers, "application/json")


async def explain(request: Request, error: Exception) -> Response:
    """Answer what a route raised."""
    if isinstance(error, WorkflowsError):
        return respond(error.code, str(error.message), error.details)
    if isinstance(error, TimeoutError):
        return respond("call.unanswered", str(error) or "there was no answer in time")
    if isinstance(error, TypeError | ValueError):
        return respond("request.invalid", str(error))
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return respond("internal", "the request failed: the platform's log says why")
