"""Platform: what a driver program holds; everything here turns into calls of tenants."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Generator, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from .actors.code.code_resolver import dispatcher_env
from .actors.instances.identifiers import check_tenant_id, check_workflow_name
from .actors.settings.platform_config import PlatformConfig
from .eventlog.errors import InvalidError, PlatformClosed, WorkflowsError
from .eventlog.ids import Ids, SystemIds
from .eventlog.store.locations import root_of
from .loaders.bundles.bundle import WorkerCode, bundle_of
from .loaders.bundles.worker import EntrypointStub, WorkerLoader, Workers
from .loaders.protocol.calls import (
    Calls,
    ChangeSchedule,
    DeployCode,
    ExplainInstance,
    ReloadCode,
)
from .loaders.sdk import http
from .loaders.sdk.binding import WorkflowBinding, seconds_of
from .loaders.sdk.entrypoints import build
from .loaders.sdk.records import Record, Why
from .loaders.sdk.service import App
from .readers import KeptReaders

if TYPE_CHECKING:
    import pyarrow as pa

    from .eventlog.query.reader import Reader
    from .eventlog.store.base import Store


class Backend(Protocol):
    """Where tenants live: on Ray, or in this process."""

    @property
    def codes(self) -> Workers:
        """Who loads workers."""
        ...

    def calls(self, tenant_id: str) -> Calls:
        """The calls of a tenant."""
        ...

    async def close(self) -> None:
        """Leave it."""
        ...


class Platform:
    """A platform, connected: `async with connect(...) as platform`.

    Leaving the block ends an embedded platform cleanly; on a cluster its actors live on.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        *,
        log: str | Path | Store,
        app: App | None = None,
        config: PlatformConfig | None = None,
        ids: Ids | None = None,
    ) -> None:
        self.config = config or PlatformConfig()
        self._start = start
        self._log = log
        self._app = app
        self._ids = ids or SystemIds()
        self._backend: Backend | None = None
        self._is_closed = False
        self.web_secret = secrets.token_bytes(32)
        """What `web_token` signs with, and `create_app` checks by."""
        self._readers = KeptReaders(self._open_reader, tenants_max=self.config.query_processes_max)

    async def __aenter__(self) -> Platform:
        if self._backend is None:
            self._backend = await self._start()
        return self

    def __await__(self) -> Generator[Any, None, Platform]:
        return self.__aenter__().__await__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the platform; every later call raises PlatformClosed. Harmless to repeat."""
        if self._is_closed:
            return
        self._is_closed = True
        self._readers.close()
        if self._backend is not None:
            await self._backend.close()

    def _open(self) -> Backend:
        if self._is_closed:
            raise PlatformClosed("the platform was closed: connect again")
        if self._backend is None:
            raise PlatformClosed("the platform is not connected yet: use `async with connect(...)`")
        return self._backend

    def tenant(self, id: str) -> Tenant:
        """The handle of a tenant, whether it has run before or not; raises `tenant.invalid_id`."""
        self._open()
        return Tenant(self, check_tenant_id(id))

    @property
    def loader(self) -> WorkerLoader:
        """Loads code that is no tenant's deployment."""
        return WorkerLoader(self._open().codes, self._ids)

    def query(
        self,
        sql: str,
        params: list[Any] | dict[str, Any] | None = None,
        *,
        skip_damaged: bool = False,
    ) -> pa.Table:
        """SQL over the views `events`, `instances`, `steps`, `attempts`, `waits` of all tenants.

        One SELECT (or EXPLAIN), which changes nothing. `params`: a list for `?`, a dict for
        `$name`. Shows everything that was acknowledged at the
        latest a second ago. Raises QueryError, after `query_timeout_seconds` at the latest, and
        Corrupt where the log of a tenant is damaged, unless `skip_damaged`: then the answer lacks
        such tenants, and its `schema.metadata[b"left_out"]` says which (JSON: id -> reason).
        """
        return self._query(sql, params, None, skip_damaged=skip_damaged)

    def _query(
        self, sql: str, params: Any, tenant_id: str | None, *, skip_damaged: bool = False
    ) -> pa.Table:
        self._open()
        with self._readers.using(tenant_id) as reader:
            return reader.query(sql, params, skip_damaged=skip_damaged)

    def _open_reader(self, tenant_id: str | None) -> Reader:
        from .eventlog.query.reader import Reader

        return Reader(
            self._log,
            tenant=tenant_id,
            memory_mb=self.config.query_memory_mb,
            timeout_s=self.config.query_timeout_seconds,
            sql_bytes_max=self.config.sql_bytes_max,
            isolation=self.config.isolation,
        )

    async def fetch(self, request: http.Request | str) -> http.Response:
        """Answer a request by the app's dispatcher."""
        backend = self._open()
        if self._app is None or self._app.dispatcher is None:
            raise InvalidError("this platform has no dispatcher: connect(app=App(Dispatcher, ...))")
        asked = http.request_from_plain(http.request_to_plain(request))
        env = dispatcher_env(self._app, backend.codes)
        dispatcher = build(self._app.dispatcher, env=env, ctx=Record(props=None))
        answer = dispatcher.fetch(asked)
        if inspect.isawaitable(answer):
            answer = await answer
        return http.response_from_plain(http.response_to_plain(answer))

    def web_token(
        self,
        tenant_id: str,
        *,
        workflow: str | None = None,
        instance: str | None = None,
        role: str = "viewer",
        seconds: float = 900,
    ) -> str:
        """A short-lived key for a customer's browser: for one tenant, or one instance of it.

        `create_app(platform, keys=…)` of this platform object takes it, in this process; programs
        of several processes share `Keys(secret=…)` and use `Keys.token`. Raises InvalidError.
        """
        from .web.keys import sign

        check_tenant_id(tenant_id)
        return sign(
            self.web_secret, tenant_id, workflow=workflow, instance=instance, role=role,
            seconds=seconds,
        )  # fmt: skip

    async def why(self, tenant_id: str, instance_id: str, workflow: str = "TenantWorkflow") -> Why:
        """Why an instance is where it is: `.code`, and a sentence as `.text`."""
        return await self.tenant(tenant_id).why(instance_id, workflow)


class Tenant:
    """The handle of one tenant."""

    def __init__(self, platform: Platform, tenant_id: str) -> None:
        self._platform = platform
        self._id = tenant_id

    def __repr__(self) -> str:
        return f"Tenant({self._id!r})"

    @property
    def id(self) -> str:
        """The tenant's id."""
        return self._id

    @property
    def _calls(self) -> Calls:
        return self._platform._open().calls(self._id)

    @property
    def workflows(self) -> WorkflowBinding:
        """The instances of the class `TenantWorkflow`."""
        return self.workflow("TenantWorkflow")

    def workflow(self, class_name: str) -> WorkflowBinding:
        """The instances of a workflow class; raises `workflow.invalid_name`."""
        name = check_workflow_name(class_name)
        return WorkflowBinding(self._calls, name, ids=self._platform._ids)

    def entrypoint(self, name: str | None = None, props: Any = None) -> EntrypointStub:
        """A stub of an entrypoint class; None: the one named `Default`."""
        return EntrypointStub(self._calls.call, name, props=props)

    def query(self, sql: str, params: list[Any] | dict[str, Any] | None = None) -> pa.Table:
        """One SELECT over this tenant's rows alone, in a process of its own; see Platform.query.

        Raises QueryError for what a tenant may not ask (docs/analytics.md), for a text of more than
        `sql_bytes_max` bytes, and for what needs more time, memory or room than the config allows;
        SandboxUnavailable where the host has no walls to run it in.
        """
        return self._platform._query(sql, params, self._id)

    async def deploy(self, code: WorkerCode) -> str:
        """Put code in place; it rules until the next `deploy` or `reload`. Answers its hash.

        Raises CodeError for code that cannot be loaded, and changes nothing then.
        """
        bundle, grants = bundle_of(code, own_binding=self._platform._app is None)
        hold = getattr(self._platform._open().codes, "hold_live_of", None)
        if hold is not None:
            hold(bundle, grants)
        return await self._calls.call(DeployCode(bundle=bundle.stored()))

    async def reload(self) -> None:
        """Forget what is held of the tenant's code, and what was deployed: ask `load` again."""
        await self._calls.call(ReloadCode())

    async def schedule(
        self, cron: str, workflow: str = "TenantWorkflow", *, remove: bool = False
    ) -> None:
        """Create an instance at each time that a cron expression (UTC) names, or no more."""
        name = check_workflow_name(workflow)
        await self._calls.call(ChangeSchedule(cron=cron, workflow=name, remove=remove))

    async def why(self, instance_id: str, workflow: str = "TenantWorkflow") -> Why:
        """Why an instance is where it is: `.code`, and a sentence as `.text`."""
        name = check_workflow_name(workflow)
        found = await self._calls.call(ExplainInstance(workflow=name, id=instance_id))
        return Why(code=found.code, text=found.text)


def connect(
    log: str | Path,
    load: Callable[[str], Any] | None = None,
    *,
    app: App | None = None,
    address: str | None = None,
    namespace: str = "dynamic-workflows",
    config: PlatformConfig | Mapping[str, Any] | None = None,
    take_over: bool = False,
    load_version: str | None = None,
    timeout: float | timedelta | None = 120.0,
) -> Platform:
    """A platform on Ray, to be entered: `async with connect("./data", load=load) as platform`.

    `log` is the path or URI (`file://`, `s3://`, `az://`, `gs://`) of the event log's root; open
    instances in it go on by themselves. `load` answers a tenant's code (tenant id -> WorkerCode),
    sync or async, in the loader actor; or `app` is a dispatcher. `address` None: an embedded Ray;
    "auto" or an address joins a cluster.

    Where a platform is at work on the log already, it is joined: on the same cluster, or, if it is
    an embedded one, from the machine that it runs on. Elsewhere PlatformBusy says who has the log;
    `take_over=True` takes it. Drivers of one platform share one `load`: the newest to connect
    rules (joining again after a recovery is not connecting), except that a lower `load_version`
    (text; numbers in it count as numbers) never replaces a higher one; who is replaced or left out
    gets a LoadReplacedWarning.

    `timeout` (seconds, or a timedelta): after it, `platform.unavailable` names what did not answer.
    """
    settings = _settings(log, load, app, config)
    root = root_of(log)
    if load_version is not None and not isinstance(load_version, str):
        raise TypeError(f"load_version is text, not {type(load_version).__name__}")
    timeout_s = seconds_of(timeout)

    async def start() -> Backend:
        from .actors.cluster.driver import RayPlatform

        return await RayPlatform.start(
            root,
            load=load,
            app=app,
            address=address,
            namespace=namespace,
            config=settings,
            take_over=take_over,
            load_version=load_version,
            timeout_s=timeout_s,
        )

    return Platform(start, log=root, app=app, config=settings)


def _settings(
    log: Any, load: Any, app: Any, config: PlatformConfig | Mapping[str, Any] | None
) -> PlatformConfig:
    """Check what `connect` was given, before anything starts."""
    if not isinstance(log, str | Path):
        raise TypeError(f"log is the path or URI of the event log, not {type(log).__name__}")
    if load is not None and app is not None:
        raise TypeError("give load= or app=, not both: an app loads the code of its tenants")
    if load is not None and not callable(load):
        raise TypeError("load is a function: tenant id -> WorkerCode")
    if app is not None and not isinstance(app, App):
        raise TypeError("app is an App(Dispatcher, workflows={...})")
    if isinstance(config, Mapping):
        return PlatformConfig(**config)
    if config is not None and not isinstance(config, PlatformConfig):
        raise TypeError("config is a PlatformConfig")
    return config or PlatformConfig()


__all__ = ["Platform", "Tenant", "WorkflowsError", "connect"]
