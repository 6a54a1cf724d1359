"""Lateness: why a tenant that is due is not awake, as the files of the timer's log tell it."""

from __future__ import annotations

import msgspec

from ..eventlog.clock import to_datetime
from ..eventlog.errors import WorkflowsError
from ..eventlog.reading import StreamReader
from ..eventlog.store import Store
from .timer_index import LATE, TIMER_STREAM
from .wake_schedule import AGAIN_S


class _Note(msgspec.Struct):
    tries: int
    reason: str
    rest_s: float


async def lateness(store: Store, tenant_id: str) -> str:
    """A clause for people: how often the platform tries to wake the tenant, and what came of it."""
    again = f"the platform tries again every {AGAIN_S[-1]:g} s"
    try:
        rows = await StreamReader(store, TIMER_STREAM).history("", tenant_id)
    except WorkflowsError:
        return again  # its log is just being written, or is nothing to read: that says little here
    last = rows[-1] if rows else None
    if last is None or last.type != LATE:
        return again  # since it slept, nothing has been written down
    note = msgspec.json.decode(last.payload or b"{}", type=_Note)
    at = to_datetime(last.ts).isoformat(" ", "seconds")
    rest_s = max(note.rest_s, AGAIN_S[-1])
    return f"the platform tries again every {rest_s:g} s: at {at}, try {note.tries}: {note.reason}"
