"""IsolateEvents: what isolates say to a tenant, and what it makes of it.

Nothing that an isolate says is believed: it speaks only for the lifetimes that are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.loaders.isolates.interface import Exit
from dynamic_workflows.loaders.protocol import messages as wire

from ..background_tasks import BackgroundTasks
from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache
from ..hosting.code_host import Host
from ..hosting.code_hosts import Hosts
from .code_operations import CodeOperations
from .commit_pipeline import CommitPipeline
from .due_timers import DueTimers
from .env_calls import EnvCallHandler
from .supervisor_state import SupervisorState
from .tenant_logs import TenantLogs

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


class IsolateEvents:
    """The listener of a tenant's hosts."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        commits: CommitPipeline,
        hosts: Hosts,
        codes: CodeCache,
        code_operations: CodeOperations,
        env_calls: EnvCallHandler,
        timers: DueTimers,
        tasks: BackgroundTasks,
        logs: TenantLogs,
        clock: Clock,
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._hosts = hosts
        self._codes = codes
        self._code_operations = code_operations
        self._env_calls = env_calls
        self._timers = timers
        self._tasks = tasks
        self._logs = logs
        self._clock = clock
        self._early: list[Callable[[], None]] = []
        """What isolates said before the log was open."""

    def deliver_early(self) -> None:
        """Handle what isolates said before the log was open."""
        early, self._early = self._early, []
        for handle in early:
            handle()

    def on_messages(self, host: Host, messages: list[tuple[int, msgspec.Struct]]) -> None:
        """Messages about lifetimes, each decided at once."""
        if self._state.is_over:
            return
        now_us = self._clock.now_us()
        lives, core, take = self._state.hosts_by_life, self._core, self._commits.take
        life = 0
        try:
            for life, message in messages:
                if lives.get(life) is not host:
                    if life in host.pending_ends:
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
        if self._state.is_over:
            return
        if not self._state.is_open:
            self._early.append(partial(self.on_call, host, life, call))
            return
        if not host.may_call(life) or (life in host.lives and self._core.key_of(life) is None):
            host.send([wire.pack(wire.Reply(call.call, error=_OVER), life=life)])
            return
        task = self._tasks.begin(self._env_calls.answer(host, life, call))
        if call.method in ("result", "events"):
            waits = host.waits.setdefault(life, set())
            waits.add(task)
            task.add_done_callback(waits.discard)

    def on_log(self, host: Host, life: int, log: wire.Log) -> None:
        """The guest printed."""
        self._logs.log(host, self._core.key_of(life), log)

    def on_ready(self, host: Host) -> None:
        """The code of a host is loaded, or is not to be had for now."""
        if not self._state.is_open:
            self._early.append(partial(self.on_ready, host))
            return
        self._codes.learn(host)
        if host.bundle is not None and self._codes.rules(host):
            known = {
                name: crons
                for name, crons in host.bundle.schedules.items()
                if self._codes.has_workflow(host.code_hash, name)
            }
            self._code_operations.follow_schedules(host.code_hash, known)
        if host.error is not None:
            self._timers.retry_at(host.retry_us)
        self._commits.kick()

    def on_lost(self, host: Host, lives: list[int], exit: Exit) -> None:
        """The isolate died, or was closed."""
        if self._state.is_over:
            return
        lives = [life for life in lives if self._state.hosts_by_life.pop(life, None) is not None]
        if exit.kind != "closed":
            # The core alone says whose fault it was; this is where it most likely happened.
            step, attempt = self._core.at_work(exit.life)
            key = self._core.key_of(exit.life) or host.pending_ends.key(exit.life)
            self._logs.ended(host, key, exit, step, attempt)
        left = host.pending_ends.key(exit.life)
        if left is not None and exit.is_tenants_own:
            now_us = self._clock.now_us()
            self._commits.take(self._core.went_on(left, reason=exit.reason, now_us=now_us))
        if lives:
            decision = self._core.lives_lost(
                lives,
                reason=exit.reason,
                own=exit.is_tenants_own,
                culprit=exit.life,
                elsewhere=host.is_elsewhere(exit.life),
                now_us=self._clock.now_us(),
            )
            self._commits.take(decision)

    def on_mistake(self, mistake: Exception) -> None:
        """The platform's own code failed on what a guest said."""
        self._state.fail_by_mistake(mistake)

    def on_room(self) -> None:
        """A lifetime that found no isolate with room may find one now."""
        self._commits.kick()
