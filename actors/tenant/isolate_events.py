"""TenantGuests: what isolates say to a tenant, and what it makes of it.

Nothing that an isolate says is believed: it speaks only for the lifetimes that are in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from dynamic_workflows.loaders.isolates.interface import Exit
from dynamic_workflows.loaders.protocol import messages as wire

from ..hosting.code_host import Host
from .env_calls import GuestCalls
from .instance_starter import TenantStarts
from .tenant_logs import Tails

_logger = logging.getLogger("dynamic_workflows.tenant")

ERROR_ARGS_BYTES_MAX = 256 * 1024
"""Bytes of the arguments of an error above which they are left out; its message stays."""
_ERRORS: dict[type, tuple[str, ...]] = {
    wire.End: ("error",),
    wire.AttemptFailed: ("error", "delay_error"),
}
_OVER = wire.Error(
    "WorkflowFatalError",
    "this lifetime is over: nothing can be called any more",
    "dynamic_workflows",
)


class TenantGuests(TenantStarts):
    """The listening half of `Tenant`: a `Listener` of its hosts."""

    tails: Tails
    _guest_calls: GuestCalls
    _tasks: set[asyncio.Task[Any]]
    _early: list[Callable[[], None]]

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or stopped by itself."""
        return self._is_closed or self.failed is not None

    def on_messages(self, host: Host, messages: list[tuple[int, msgspec.Struct]]) -> None:
        """Messages about lifetimes, each decided at once."""
        if self._is_closed or self.failed is not None:
            return
        now_us = self._clock.now_us()
        lives, core, take = self._lives, self.core, self._pump.take
        life = 0
        try:
            for life, message in messages:
                if lives.get(life) is not host:
                    if life in host.leavers:
                        continue  # a lifetime that has ended meanwhile
                    raise wire.ProtocolViolation(f"{life} is not in this isolate")
                kind = type(message)
                if kind is wire.Done or kind is wire.End:
                    self._hosts.check(message.value)  # type: ignore[attr-defined]
                    self._hosts.made_progress(host)
                for name in _ERRORS.get(kind, ()):
                    self._check_error(getattr(message, name))
                take(core.on_message(life, message, now_us=now_us))
        except wire.ProtocolViolation as violation:
            violation.life = life
            raise

    def _check_error(self, error: wire.Error | None) -> None:
        """Leave out arguments that are no value, or that no guest of ours sends: they go into rows
        as they are."""
        if error is None:
            return
        if len(error.args or b"") > ERROR_ARGS_BYTES_MAX:
            error.args = None
        try:
            self._hosts.check(error.args)
        except wire.ProtocolViolation:
            error.args = None

    def on_call(self, host: Host, life: int, call: wire.CallRequest) -> None:
        """The guest calls a binding; what it did before takes effect first."""
        if self.is_over:
            return
        if not self._is_open:
            self._early.append(partial(self.on_call, host, life, call))
            return
        if not host.may_call(life) or (life in host.lives and self.core.key_of(life) is None):
            host.send([wire.pack(wire.Reply(call.call, error=_OVER), life=life)])
            return
        task = self._spawn(self._guest_calls.answer(host, life, call))
        if call.method in ("result", "events"):
            waits = host.waits.setdefault(life, set())
            waits.add(task)
            task.add_done_callback(waits.discard)

    def on_log(self, host: Host, life: int, log: wire.Log) -> None:
        """The guest printed."""
        self.tails.log(host, self.core.key_of(life), log)

    def on_ready(self, host: Host) -> None:
        """The code of a host is loaded, or is not to be had for now."""
        if not self._is_open:
            self._early.append(partial(self.on_ready, host))
            return
        self._codes.learn(host)
        if host.bundle is not None and self._codes.rules(host):
            known = {
                name: crons
                for name, crons in host.bundle.schedules.items()
                if self._codes.has_workflow(host.code_hash, name)
            }
            self._follow_schedules(host.code_hash, known)
        if host.error is not None:
            self._retry_at(host.retry_us)
        self._pump.kick()

    def on_lost(self, host: Host, lives: list[int], exit: Exit) -> None:
        """The isolate died, or was closed."""
        if self._is_closed or self.failed is not None:
            return
        lives = [life for life in lives if self._lives.pop(life, None) is not None]
        if exit.kind != "closed":
            # The core alone says whose fault it was; this is where it most likely happened.
            step, attempt = self.core.at_work(exit.life)
            key = self.core.key_of(exit.life) or host.leavers.key(exit.life)
            self.tails.ended(host, key, exit, step, attempt)
        left = host.leavers.key(exit.life)
        if left is not None and exit.is_tenants_own:
            now_us = self._clock.now_us()
            self._pump.take(self.core.went_on(left, reason=exit.reason, now_us=now_us))
        if lives:
            decision = self.core.lives_lost(
                lives,
                reason=exit.reason,
                own=exit.is_tenants_own,
                culprit=exit.life,
                elsewhere=host.is_elsewhere(exit.life),
                now_us=self._clock.now_us(),
            )
            self._pump.take(decision)

    def on_mistake(self, mistake: Exception) -> None:
        """Memory can no longer be trusted; the log can: start again from it."""
        _logger.error("tenant %r: a mistake of ours", self.tenant_id, exc_info=mistake)
        self._fail(mistake)

    def on_room(self) -> None:
        """A lifetime that found no isolate with room may find one now."""
        self._pump.kick()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
