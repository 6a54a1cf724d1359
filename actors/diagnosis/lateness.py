"""Lateness: why a tenant that is due is not awake, as the timer or the files of its log tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from dynamic_workflows.eventlog.clock import US, to_datetime
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.log.stream_reader import StreamReader
from dynamic_workflows.eventlog.store.base import Store

from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import TimerApi, remote
from ..timers.tenant_entry import OPEN
from ..timers.timer_index import LATE, TIMER_STREAM
from ..timers.wake_schedule import AGAIN

LATE_US = 30 * US
"""What is due for so long is overdue: a platform at work wakes within a second or two."""
TIMER_S = 2.0
"""Seconds that the timer may take to answer."""


class _Note(msgspec.Struct):
    tries: int
    reason: str
    rest_s: float


async def lateness(store: Store, tenant_id: str) -> str:
    """Return a sentence part: how often the platform tried to wake the tenant, and with what
    result."""
    again = _again()
    try:
        rows = await StreamReader(store, TIMER_STREAM).history("", tenant_id)
    except WorkflowsError:
        return again  # its log is just being written, or is nothing to read: that says little here
    last = rows[-1] if rows else None
    if last is None or last.type != LATE:
        return again  # since it slept, nothing has been written down
    note = msgspec.json.decode(last.payload or b"{}", type=_Note)
    at = to_datetime(last.ts).isoformat(" ", "seconds")
    return f"{_again(note.rest_s)}: at {at}, try {note.tries}: {note.reason}"


async def asked_lateness(
    find_timer: Callable[[], Awaitable[ActorRef]], tenant_id: str, now_us: int
) -> str:
    """Return what the timer knows of a tenant that should be awake and is not; "" if it is in
    time.

    A clause for people. Changes nothing, and takes some seconds at most: a timer that does not
    answer is named, since no tenant is woken then.
    """
    try:
        timer = await asyncio.wait_for(find_timer(), TIMER_S)
        state = await remote(timer, TimerApi.wake_state, timeout_s=TIMER_S)(tenant_id)
    except (ActorUnreachable, TimeoutError, WorkflowsError):
        return "the timer actor, which wakes tenants, did not answer"
    tried = f": try {state.tries}: {state.reason}" if state.reason else ""
    if state.due_us == OPEN:
        # That it is tried at all says that it lives nowhere; the first try takes no time.
        started = "its process has ended, and another has not opened it so far"
        return f"{started}; {_again(state.rest_s)}{tried}" if tried else ""
    if state.due_us is None or now_us - state.due_us <= LATE_US:
        return ""
    due = to_datetime(state.due_us).isoformat(" ", "seconds")
    late_s = (now_us - state.due_us) // US
    return f"its tenant was due at {due}, {late_s} s ago; {_again(state.rest_s)}{tried}"


def _again(rest_s: float = 0.0) -> str:
    return f"the platform tries again every {max(rest_s, AGAIN.most_s):g} s"
