"""Instance list: pages of instances by status, by time and by text in their ids."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime

import msgspec

from .access import Access
from .errors import HttpError

LIMIT_MAX = 1_000
_RANGES = {
    "created_after": "created_at >= ", "created_before": "created_at < ",
    "ended_after": "ended_at >= ", "ended_before": "ended_at < ",
}  # fmt: skip
_FILTERS = {"status", "text", "cursor", "limit", *_RANGES}


async def page_of(access: Access) -> dict[str, object]:
    """A page as `{"items", "cursor"}`, newest first; the cursor of the last page is null.

    The query may hold `status` (repeated), `created_after`, `created_before`, `ended_after`,
    `ended_before` (ISO 8601), `text` (part of an id), `limit` (100) and `cursor`.
    """
    query = access.request.query_params
    unknown = query.keys() - _FILTERS
    if unknown:
        raise HttpError(f"no filter is called {sorted(unknown)[0][:100]!r}")
    limit = _limit(query.get("limit"))
    statuses = query.getlist("status")
    if not (query.keys() & {"text", *_RANGES}):
        page = await access.workflow.list(
            status=statuses or None, limit=limit, cursor=query.get("cursor")
        )
        items = [
            {
                "id": one.id, "workflow": one.workflow, "status": one.status,
                "created_at": one.created_at, "ended_at": one.ended_at,
            }
            for one in page
        ]  # fmt: skip
        return {"items": items, "cursor": page.cursor}
    return await _filtered(access, statuses, limit)


async def _filtered(access: Access, statuses: list[str], limit: int) -> dict[str, object]:
    query = access.request.query_params
    where = ["tenant_id = $tenant", "workflow = $workflow"]
    params: dict[str, object] = {"tenant": access.tenant_id, "workflow": access.workflow_name}
    if statuses:
        where.append("list_contains($statuses, status)")
        params["statuses"] = statuses
    if "text" in query:
        where.append("contains(instance_id, $text)")
        params["text"] = query["text"]
    for name, condition in _RANGES.items():
        if name in query:
            where.append(f"{condition} ${name}")
            params[name] = _moment(name, query[name])
    if "cursor" in query:
        where.append("(created_at, instance_id) < ($last_at, $last_id)")
        params["last_at"], params["last_id"] = _read_cursor(query["cursor"])
    sql = (
        "SELECT instance_id AS id, workflow, status, created_at, ended_at FROM instances "
        f"WHERE {' AND '.join(where)} "
        f"ORDER BY created_at DESC, instance_id DESC LIMIT {limit + 1}"
    )
    table = await asyncio.to_thread(access.platform.query, sql, params)
    rows = table.to_pylist()
    cursor = None
    if len(rows) > limit:
        last = rows[limit - 1]
        cursor = _write_cursor(last["created_at"], last["id"])
    return {"items": rows[:limit], "cursor": cursor}


def _limit(text: str | None) -> int:
    if text is None:
        return 100
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= LIMIT_MAX:
        raise HttpError(f"a page holds 1 to {LIMIT_MAX:,} instances, not {text[:100]!r}")
    return int(text)


def _moment(name: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise HttpError(f"{name} is a time in ISO 8601, not {text[:100]!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _write_cursor(moment: datetime, instance_id: str) -> str:
    text = msgspec.json.encode([moment.astimezone(UTC).isoformat(), instance_id])
    return base64.urlsafe_b64encode(text).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor)
        moment, instance_id = msgspec.json.decode(text, type=tuple[str, str])
        return datetime.fromisoformat(moment), instance_id
    except (ValueError, msgspec.MsgspecError):
        raise HttpError("the cursor is not one that a page gave") from None
