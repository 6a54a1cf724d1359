"""Suspension: an instance that waits for long, or is paused, gives up its lifetime."""

from __future__ import annotations

from dynamic_workflows.loaders.protocol.contract import RUNNING

from ..instances.decisions import Decision
from ..instances.index_entry import IndexEntry, Lifetime
from ..instances.row_payloads import Paused
from .lifetimes import Lifetimes
from .state import CoreState


class Suspension:
    """Ends lifetimes of instances that wait for long, or that are paused."""

    def __init__(self, state: CoreState, lifetimes: Lifetimes) -> None:
        self._state = state
        self._lifetimes = lifetimes

    def suspend(self, d: Decision, entry: IndexEntry, now_us: int) -> None:
        """End the lifetime of an instance that waits; its timer starts another one."""
        if entry.status == RUNNING:
            self._state.emit(d, entry, "workflow_waiting", now_us=now_us)
        self._lifetimes.end(d, entry)
        self._state.rest(entry, now_us)

    def try_pause(self, d: Decision, life: Lifetime, now_us: int) -> None:
        """Carry out a pending pause if no callback of the lifetime is in flight any more."""
        if life.running == 0:
            self.pause(d, life.entry, now_us)

    def pause(self, d: Decision, entry: IndexEntry, now_us: int, token: str | None = None) -> None:
        """Pause an instance at once: end its lifetime, and arm no timer."""
        self._lifetimes.end(d, entry)
        body = None if token is None else Paused(token=token)
        self._state.emit(d, entry, "workflow_paused", body, now_us=now_us)
        d.durable = True
        self._state.rest(entry, now_us)
