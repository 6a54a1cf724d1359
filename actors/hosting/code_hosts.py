"""Hosts: the isolates of one tenant, one or some for each code in use, started when needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynamic_workflows.eventlog.clock import US, Clock, TimerHandle
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import CodeError, WorkflowsError
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.bundles.bundle import Bundle
from dynamic_workflows.loaders.isolates.interface import Exit, Isolates, Limits
from dynamic_workflows.loaders.protocol.messages import Frame, ProtocolViolation, pack

from ..background_tasks import BackgroundTasks
from ..code.code_resolver import CodeSource
from .code_host import Host, HostKey, IsolateListener
from .isolate_scaling import IsolateScaler
from .load_backoff import LoadBackoff
from .pending_ends import EndDeadline
from .services import ServiceCache, Services

if TYPE_CHECKING:
    from ..settings.platform_config import PlatformConfig

_logger = logging.getLogger("dynamic_workflows.hosts")


class Hosts:
    """The hosts of one tenant by code."""

    def __init__(
        self,
        isolates: Isolates,
        codes: CodeSource,
        config: PlatformConfig,
        *,
        clock: Clock,
    ) -> None:
        """`listener` has to be set before the first host is asked for."""
        self.clock = clock
        self.listener: IsolateListener
        self._isolates = isolates
        self._codes = codes
        self._config = config
        self._hosts: dict[HostKey, Host] = {}
        self._more: dict[HostKey, list[Host]] = {}
        """Where one isolate was not enough: the others."""
        self._revived = ServiceCache()
        self._load_backoff = LoadBackoff(clock)
        self._scaler: IsolateScaler[Host] = IsolateScaler(
            config.isolates_max, hosts=lambda: list(self), grow=self._grow, on_room=self._on_room
        )
        self._end_deadline = EndDeadline(
            config.drop_grace_seconds,
            slack_s=config.turn_wall_seconds,
            hosts=lambda: list(self),
        )
        self._starting = BackgroundTasks()
        self._sweep: TimerHandle | None = None
        self._is_closed = False
        self.calls_out_max = 2 * config.calls_in_flight_max
        self.call_timeout_s = config.call_timeout_seconds

    def __iter__(self) -> Iterator[Host]:
        more = (host for hosts in self._more.values() for host in hosts)
        return iter([*self._hosts.values(), *more])

    def holds(self, host: Host) -> bool:
        """Whether the host is one of these, and not one that was forgotten."""
        return self._hosts.get(host.key) is host or host in self._more.get(host.key, ())

    def get(self, key: HostKey) -> Host:
        """The host of this code; starts one where there is none, or where the last try is old."""
        host = self._hosts.get(key)
        if host is None or (host.error is not None and host.retry_us <= self.clock.now_us()):
            host = self._hosts[key] = self._begin(key)
        return host

    def place(self, host: Host) -> Host | None:
        """The host for one more lifetime of this one's code; None: not yet, `on_room` follows."""
        return self._scaler.place(host, self._more.get(host.key, ()))

    async def ready(self, key: HostKey, *, fresh: bool = False) -> Host:
        """The host of this code, loaded, or CodeError; `fresh` forgets that loading failed."""
        held = self._hosts.get(key)
        if fresh and held is not None and held.error is not None and not held.is_parked:
            del self._hosts[key]
        host = self.get(key)
        await host.loaded()
        return host

    def _begin(self, key: HostKey) -> Host:
        host = Host(key, self, self._end_deadline)
        host.used_us = self.clock.now_us()
        self._starting.begin(self._start(host))
        self._sweep_later()
        return host

    def _on_room(self) -> None:
        self.listener.on_room()

    def _grow(self, host: Host) -> None:
        self._more.setdefault(host.key, []).append(self._begin(host.key))

    def forget(self, host: Host) -> None:
        """The host is gone; the next `get` takes another, or starts one."""
        more = self._more.get(host.key, [])
        if host in more:
            more.remove(host)
        elif self._hosts.get(host.key) is host:
            del self._hosts[host.key]
            if more:
                self._hosts[host.key] = more.pop(0)
        if not more:
            self._more.pop(host.key, None)

    def failed(self, host: Host) -> None:
        """Its code could not be loaded."""
        if self._hosts.get(host.key) is host:
            host.retry_us = self._load_backoff.failed(host.key)
            self.listener.on_ready(host)
        else:
            self.forget(host)
            self._scaler.growth_failed()

    def ended(self, host: Host, exit: Exit) -> None:
        """Its isolate is gone. Code that does so again and again has to wait, and says why."""
        count, retry_us = 0, 0
        if exit.is_tenants_own:
            count, retry_us = self._load_backoff.died(host.key, had_progress=host.has_progressed)
        if not retry_us or self._hosts.get(host.key) is not host:
            self.forget(host)
            return
        wait_s = (retry_us - self.clock.now_us()) / US
        text = f"the code ended its isolate {count} times in a row, the last time by: {exit.reason}"
        text += f"; it may start {wait_s:.1f} s after that"
        host.error = CodeError(text, code="isolate.died")
        host.retry_us, host.is_parked = retry_us, True
        _logger.warning("%s", host.error)
        self.listener.on_ready(host)

    def made_progress(self, host: Host) -> None:
        """What it runs gets somewhere: earlier failures do not count any more."""
        if not host.has_progressed:
            host.has_progressed = True
            self._load_backoff.made_progress(host.key)

    def check(self, value: bytes | None) -> None:
        """Prove that text from a guest is a value; ProtocolViolation when it is none."""
        if value is not None:
            try:
                values.check(value, self._config.value_bytes_max)
            except WorkflowsError as error:
                raise ProtocolViolation(f"a value does not decode: {error}") from None

    async def close(self) -> None:
        """End every isolate."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._scaler.close()
        self._end_deadline.close()
        await self._starting.stop()
        hosts = list(self)
        self._hosts, self._more = {}, {}
        for host in hosts:
            host.kill("closed", kind="closed", is_tenants_own=False)

    async def _start(self, host: Host) -> None:
        try:
            mark("worker: knows the code's hash")
            bundle = host.bundle = await self._codes.bundle(host.code_hash)
            mark("worker: has the code")
            self._check_size(bundle)
            host.limits = _lower(bundle.limits, dict(host.key[2]))
            host.services = Services(bundle, self._codes.live(host.code_hash), self._revived)
            limits = self._config.limits(host.limits)
            host.isolate = await self._isolates.start(
                limits=limits,
                on_frames=host.on_frames,
                on_exit=host.on_exit,
                first=[self._load(bundle, limits)],
            )
        except WorkflowsError as error:
            host.fail(error)
            return
        except Exception as error:
            # Whatever it is, whoever waits for this host has to hear of it.
            _logger.exception("an isolate could not be started")
            host.fail(CodeError(f"no isolate could be started: {error}", code="code.load_failed"))
            return
        mark("worker: has an isolate, which loads")
        host.expect_load()

    def _load(self, bundle: Bundle, limits: Limits) -> Frame:
        options = {
            "threads": self._config.threads,
            "value_bytes_max": self._config.value_bytes_max,
            "network": bundle.outbound is not None,
            "limits": {
                "memory_mb": limits.memory_mb,
                "files_max": limits.files_max,
                "tmp_mb": limits.tmp_mb,
            },
            "drop_grace_s": self._config.drop_grace_seconds,
            "replays": self._config.tail_replays,
        }
        return pack(bundle.load_message(packages=self._config.packages, options=options))

    def _check_size(self, bundle: Bundle) -> None:
        size, most = sum(len(one.data) for one in bundle.modules), self._config.modules_bytes_max
        if size > most:
            raise CodeError(f"the modules have {size:,} bytes, more than {most:,}")

    # --- isolates that nobody needs

    def _sweep_later(self) -> None:
        if self._sweep is None and not self._is_closed:
            idle_us = round(self._config.isolate_idle_seconds * US)
            self._sweep = self.clock.call_at(self.clock.now_us() + idle_us, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        oldest_us = self.clock.now_us() - round(self._config.isolate_idle_seconds * US)
        for host in self:
            if host.is_unused() and host.used_us <= oldest_us:
                self.forget(host)
                host.kill("closed: idle", kind="closed", is_tenants_own=False)
            elif host.error is not None and host.retry_us <= oldest_us:
                self.forget(host)
        if self._hosts:
            self._sweep_later()


def _lower(limits: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    return limits | {name: min(value, limits.get(name, value)) for name, value in others.items()}
