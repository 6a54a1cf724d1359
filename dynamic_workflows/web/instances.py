"""Instances: creating, listing, looking at, steering and deleting them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..eventlog.errors import WorkflowFailedError, WorkflowTerminatedError
from ..loaders.sdk.binding import WorkflowBinding
from ..loaders.sdk.records import Status
from .access import Access
from .bodies import json_of, object_of, plain_of, read_bytes, read_object, respond_json, value_of
from .errors import HttpError
from .idempotency import TokenOf
from .instance_history import described, find_step
from .instance_list import page_of
from .keys import READ, RUN

RESULT_SECONDS_MAX = 60.0
"""How long one request waits for a result; the client asks again."""
_ITEM = ("id", "params", "retention", "pin")


async def create(request: Request) -> Response:
    """POST …/instances: one instance, or `{"instances": [...]}` for a batch of up to 10,000."""
    access = Access(request, RUN)
    key = request.headers.get("idempotency-key")
    body = await read_bytes(request, access.service.body_bytes_max)
    scope = f"{access.key.name} POST {request.url.path}"

    async def work() -> Response:
        fields = object_of(body, *_ITEM, "instances")
        binding = access.workflow
        if key is not None:
            binding = WorkflowBinding(
                access.tenant._calls,
                access.workflow_name,
                ids=TokenOf(scope, key),
            )
        if "instances" in fields:
            return await _create_batch(access, binding, fields)
        item = _item(fields)
        if key is not None and item.get("id") is None:
            item["id"] = TokenOf(scope, key).uuid()
        made = await binding.create(**item)
        access.audit("create", instance=made.id)
        place = {"Location": f"{request.url.path}/{_quoted(made.id)}"}
        return respond_json({"id": made.id, "workflow": access.workflow_name}, 201, place)

    return await access.service.responses.once(scope, key, body, work)


async def _create_batch(
    access: Access, binding: WorkflowBinding, fields: dict[str, msgspec.Raw]
) -> Response:
    if len(fields) > 1:
        raise HttpError("a batch has `instances` and nothing beside it", code="batch.invalid")
    items = plain_of(fields["instances"], list[dict[str, msgspec.Raw]], "instances") or []
    made = await binding.create_batch([_item(item) for item in items])
    access.audit("create", count=len(made))
    return respond_json({"items": [{"id": one.id} for one in made]}, 201)


def _item(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    unknown = fields.keys() - set(_ITEM)
    if unknown:
        raise HttpError(
            f"unknown key {', '.join(sorted(unknown))[:200]!r}: use {', '.join(_ITEM)}",
            code="batch.invalid",
        )
    return {
        "id": plain_of(fields.get("id"), str, "id"),
        "params": value_of(fields.get("params")),
        "retention": plain_of(fields.get("retention"), dict[str, str | float], "retention"),
        "pin": plain_of(fields.get("pin"), str, "pin"),
    }


async def listed(request: Request) -> Response:
    """GET …/instances: a page, newest first; filters and `cursor` in the query."""
    access = Access(request, READ)
    return respond_json(await access.while_asked(lambda: page_of(access)))


async def shown(request: Request) -> Response:
    """GET …/instances/{id}: all that is known of one instance."""
    access = Access(request, READ)

    async def work() -> dict[str, Any]:
        instance = await access.instance()
        status, events, why = await _looked_at(access, instance)
        facts = described(events)
        return {
            "id": instance.id,
            "workflow": access.workflow_name,
            "tenant": access.tenant_id,
            **_status(status),
            "why": {"code": why.code, "text": why.text},
            **facts,
        }

    return respond_json(await access.while_asked(work))


async def _looked_at(access: Access, instance: Any) -> tuple[Status, list[Any], Any]:
    return await instance.status(), await instance.history(), await instance.why()


def _status(status: Status) -> dict[str, Any]:
    error, rollback, reason = status.error, status.rollback, status.reason
    shown_rollback = None
    if rollback is not None:
        shown_rollback = {"outcome": rollback.outcome, "error": _error(rollback.error)}
    return {
        "status": status.status,
        "output": json_of(status.output),
        "error": _error(error),
        "rollback": shown_rollback,
        "reason": None if reason is None else {"code": reason.code, "message": reason.message},
    }


def _error(error: Any) -> dict[str, str] | None:
    return None if error is None else {"name": error.name, "message": error.message}


async def step(request: Request) -> Response:
    """GET …/instances/{id}/steps/{name}?count=: one step with its whole output."""
    access = Access(request, READ)
    count = _number(request, "count", 1)

    async def work() -> dict[str, Any]:
        instance = await access.instance()
        found = find_step(await instance.history(), access.names["step"], count)
        if found is None:
            raise HttpError(
                f"the present run has no step {access.names['step'][:200]!r} number {count}",
                code="step.not_found",
            )
        return found

    return respond_json(await access.while_asked(work))


async def steer(request: Request) -> Response:
    """PATCH …/instances/{id}: `{"status": "pause"|"resume"|"restart"|"terminate"}`.

    `from` (of restart) names the step to begin at, `rollback` (of terminate) undoes finished steps.
    """
    access = Access(request, RUN)
    bytes_max = access.service.body_bytes_max
    fields = await read_object(request, bytes_max, "status", "from", "rollback")
    what = plain_of(fields.get("status"), str, "status")
    start = plain_of(fields.get("from"), str | dict[str, str | int], "from")
    rollback = plain_of(fields.get("rollback"), bool, "rollback")
    instance = await access.instance()
    if start is not None and what != "restart":
        raise HttpError("`from` belongs to restart")
    if rollback is not None and what != "terminate":
        raise HttpError("`rollback` belongs to terminate")
    match what:
        case "pause":
            await instance.pause()
        case "resume":
            await instance.resume()
        case "restart":
            await instance.restart(from_=start)
        case "terminate":
            await instance.terminate(rollback=bool(rollback))
        case _:
            raise HttpError("`status` is pause, resume, restart or terminate")
    access.audit(what)
    return respond_json({"id": instance.id, **_status(await instance.status())})


async def delete(request: Request) -> Response:
    """DELETE …/instances/{id}: remove it and everything of it."""
    access = Access(request, RUN)
    await access.workflow.delete(access.names["id"])
    access.audit("delete")
    return Response(status_code=204)


async def send_event(request: Request) -> Response:
    """POST …/instances/{id}/events/{type}: deliver an event; the body is its payload."""
    access = Access(request, RUN)
    body = await read_bytes(request, access.service.body_bytes_max)
    scope = f"{access.key.name} POST {request.url.path}"

    async def work() -> Response:
        payload = value_of(msgspec.Raw(body)) if body.strip() else None
        instance = await access.instance()
        await instance.send_event(access.names["type"], payload)
        access.audit("send_event", type=access.names["type"])
        return Response(status_code=202)

    key = request.headers.get("idempotency-key")
    return await access.service.responses.once(scope, key, body, work)


async def result(request: Request) -> Response:
    """GET …/instances/{id}/result?timeout=: wait for the end; 202 while it has not ended.

    `timeout` is in seconds, 60 at most; 0 answers at once.
    """
    access = Access(request, READ)
    wait_s = _seconds(request, "timeout", RESULT_SECONDS_MAX)

    async def work() -> Response:
        instance = await access.instance()
        try:
            output = await instance.result(timeout=wait_s)
        except (WorkflowFailedError, WorkflowTerminatedError):
            return respond_json({"id": instance.id, **_status(await instance.status())})
        except TimeoutError:
            status = await instance.status()
            return respond_json({"id": instance.id, **_status(status)}, 202)
        return respond_json({"id": instance.id, "status": "complete", "output": json_of(output)})

    return await access.while_asked(work)


def _seconds(request: Request, name: str, most: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return most
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise HttpError(f"{name} is a number of seconds, not {text[:100]!r}")
    return min(seconds, most)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise HttpError(f"{name} is a number, not {text[:100]!r}")
    return int(text)


def _quoted(text: str) -> str:
    return quote(text, safe="")
