"""InstanceStarter: which instances get a lifetime now, and which have to be loaded first.

An instance starts only where its code is loaded, so nothing is recorded of a start that could not
be. An instance that cannot start keeps its place in the queue, and shows why.
"""

from __future__ import annotations

import asyncio
from itertools import islice

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.loaders.protocol import messages

from ..background_tasks import stop_all
from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache, unwrapped
from ..hosting.code_host import Host
from ..hosting.code_hosts import Hosts
from ..instances.decisions import Decision, Key, Send
from .commit_pipeline import CommitPipeline
from .due_timers import DueTimers
from .instance_loader import InstanceLoader
from .supervisor_state import SupervisorState

_STARTS_A_TURN_MAX = 512


class InstanceStarter:
    """Starts the lifetimes of one tenant's instances."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        commits: CommitPipeline,
        hosts: Hosts,
        codes: CodeCache,
        loader: InstanceLoader,
        timers: DueTimers,
        clock: Clock,
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._hosts = hosts
        self._codes = codes
        self._loader = loader
        self._timers = timers
        self._clock = clock
        self._failing: set[Key] = set()
        """Instances whose code could not be loaded when they were last tried."""
        self._finding: dict[tuple[str, bytes | None], asyncio.Task[None]] = {}
        """Tasks that ask for the newest code, by what it depends on."""

    def start_runnable(self) -> None:
        """Start lifetimes, as far as slots and loaded code reach; at the end of each turn."""
        if self._state.is_closed or not self._state.is_open:
            return
        keys = list(islice(self._core.runnable(), _STARTS_A_TURN_MAX))
        if self._is_full():
            keys = []  # Each end of a lifetime looks again.
        moved = [self._loader.has_memory() and self._try_to_start(key) for key in keys]
        if len(keys) == _STARTS_A_TURN_MAX and any(moved):
            self._commits.kick()  # there may be more behind them
        self._timers.arm()

    def _is_full(self) -> bool:
        """Whether what runs takes so much memory that nothing more may start beside it."""
        if self._loader.has_memory():
            return False
        self._loader.evict()
        return not self._loader.has_memory()

    def _try_to_start(self, key: Key) -> bool:
        """Start one, or note why not; False: it stands where it stood, something is under way."""
        core = self._core
        follows = core.pin(key) == "latest"
        is_loaded = core.is_loaded(key)
        if follows and is_loaded:
            latest = self._latest(key)
            if latest is None:
                return False
            if latest != core.code_hash(key):
                core.repin(key, latest)
        if not is_loaded and follows:
            self._loader.load_soon(key)  # its metadata says what it follows
            return False
        code_hash = core.code_hash(key)
        assert code_hash is not None, "every instance is created with code"
        host = self._hosts.get((code_hash, None, ()))
        if not host.is_ready or not self._codes.has_workflow(code_hash, key[0]):
            return self._note_failure(key, host)
        if not is_loaded:
            self._loader.load_soon(key)
            return False
        place = self._hosts.place(host)
        if place is None:
            return False
        self._start(key, place)
        return True

    def _note_failure(self, key: Key, host: Host) -> bool:
        """Show why an instance cannot start, unless its code is merely being loaded."""
        if host.error is not None:
            self._core.note_load_failure(key, host.error.code, host.error.message)
            self._timers.retry_at(host.retry_us)
        elif host.is_ready:
            self._core.note_load_failure(
                key, "code.class_missing", f"the code has no workflow class {key[0]!r}"
            )
        else:
            return False
        is_news = key not in self._failing
        self._failing.add(key)
        return is_news

    def forget_failure(self, key: Key) -> None:
        """The instance has ended: whether its code failed does not matter any more."""
        self._failing.discard(key)

    def _start(self, key: Key, host: Host) -> None:
        decision = self._core.start(key, now_us=self._clock.now_us())
        self._failing.discard(key)
        life = decision.answer
        steps_max = host.limits.get("steps")
        if steps_max is not None:
            _lower_steps(decision, steps_max)
        if life is not None:
            self._state.hosts_by_life[life] = host
            host.lives[life] = key
        self._commits.take(decision)

    def _latest(self, key: Key) -> str | None:
        """The newest code for an instance that follows it; None: it is being asked for."""
        binding, metadata = unwrapped(self._core.metadata(key))
        held = self._codes.held(binding, metadata)
        if held is not None:
            return held.code_hash
        if self._codes.retry_us > self._clock.now_us():
            return None
        name = ("latest", metadata)
        if name not in self._finding:
            task = self._finding[name] = asyncio.ensure_future(
                self._find_latest(key, binding, metadata)
            )
            task.add_done_callback(lambda done: self._finding.pop(name, None))
        return None

    async def _find_latest(self, key: Key, binding: str | None, metadata: bytes | None) -> None:
        try:
            await self._codes.current(binding, metadata)
        except WorkflowsError as error:
            if self._core.exists(key):
                self._core.note_load_failure(key, error.code, error.message)
            self._timers.retry_at(self._codes.retry_us)
        self._commits.kick()

    async def close(self) -> None:
        """Cancel the tasks that ask for code."""
        await stop_all(self._finding.values())


def _lower_steps(decision: Decision, steps_max: int) -> None:
    """The code's own limit holds where it is below the platform's."""
    for effect in decision.effects:
        if type(effect) is Send and isinstance(effect.message, messages.Run):
            effect.message.steps_max = min(effect.message.steps_max, steps_max)
