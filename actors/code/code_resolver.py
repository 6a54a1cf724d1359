"""Code resolver: finds the code of a tenant's new instances, and the bundles that older ones are
pinned to.

`CodeSource` is what a tenant calls. `CodeResolver` implements it on the platform's side: it runs
the callbacks, makes bundles of what they return, stores each under its content hash before any
caller learns the hash, and caches the answers for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import msgspec
from cachetools import LRUCache, TTLCache
from pydantic import ValidationError

from dynamic_workflows.eventlog.clock import Clock, to_datetime
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import (
    CodeError,
    InvalidError,
    MissingDispatcherMetadataError,
    Unavailable,
    WorkflowsError,
)
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.store.base import AlreadyExists, NotFound, Store
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.bundles.bundle import (
    Bundle,
    Grants,
    WorkerCode,
    bundle_of,
    code_key,
    from_stored,
)
from dynamic_workflows.loaders.bundles.code_keys import CodeKeys
from dynamic_workflows.loaders.bundles.worker import (
    EntrypointStub,
    WorkerLoader,
    WorkerRef,
    Workers,
    target_of,
)
from dynamic_workflows.loaders.protocol.calls import AnswerT, Calls, CreateBatch, TenantCall
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding
from dynamic_workflows.loaders.sdk.records import Record
from dynamic_workflows.loaders.sdk.service import App, DispatchEvent, only_dispatches

from ..instances.cron import check_declared
from ..instances.identifiers import check_tenant_id, is_tenant_id
from .callbacks import Callbacks, answer_of
from .dispatcher_runs import Dispatch, Dispatches, PendingDispatch

BUNDLES_HELD = 256
LIVE_HELD = 1_024
ANSWERS_HELD = 100_000


class Resolved(msgspec.Struct, frozen=True):
    """The code of new instances, the class where a dispatcher chose it, and how long that holds."""

    code_hash: str
    workflow: str | None = None
    until_us: int = 0
    is_own: bool = False
    """A dispatcher's own class answered it, which runs for each create."""
    ticket: str | None = None
    """Of the dispatcher's class, which waits at its hand-over for `dispatched`; it holds for one
    create."""


class _Answer(NamedTuple):
    """What a callback of the platform answered, and until when it holds."""

    value: Resolved | WorkerRef
    until_us: int


PrefetchedCode: TypeAlias = tuple[Resolved, bytes | None]
"""The code for a tenant's new instances, and its stored bundle if that was handed along."""


class CodeSource(Protocol):
    """The interface through which a tenant finds code."""

    is_app: bool
    """Creates go through a dispatcher and need its metadata."""

    async def current(
        self, tenant_id: str, *, binding: str | None = None, metadata: bytes | None = None
    ) -> Resolved:
        """Return the stored code for new instances; may run the platform's callback.

        Raises CodeError (`code.load_failed`, `code.invalid`) and MissingDispatcherMetadataError.
        """
        ...

    async def dispatch(
        self, tenant_id: str, binding: str | None, metadata: bytes, asked: Sequence[PendingDispatch]
    ) -> list[Resolved]:
        """Return the code for each of these new instances; runs a dispatcher's own class once
        for each.

        Where it has run, all have one ticket, and `dispatched` is to follow. Raises CodeError.
        """
        ...

    async def dispatched(self, ticket: str, is_stored: bool) -> None:
        """Report whether the instances were created: the dispatcher's class continues, or is
        cancelled."""
        ...

    async def bundle(self, code_hash: str) -> Bundle:
        """Return the stored bundle; raises CodeError `code.load_failed` when it is unavailable
        now."""
        ...

    async def keep(self, bundle: Bundle) -> str:
        """Store a bundle under its hash, and return the hash; harmless when it is stored."""
        ...

    async def forget(self, tenant_id: str) -> None:
        """Drop what is cached for this tenant: the next `current` runs the callback."""
        ...

    def live(self, code_hash: str) -> Grants:
        """Return the services of a bundle where they were made in this process, else {}."""
        ...

    def peer(self, tenant_id: str) -> Calls:
        """Return the calls of another tenant, for bindings that route there."""
        ...


class Bundles:
    """The bundles under a log's root; those used last are cached in memory."""

    def __init__(self, store: Store, keys: CodeKeys | None = None) -> None:
        self._store = store
        self._keys = keys or CodeKeys()
        self._held: LRUCache[str, Bundle] = LRUCache(BUNDLES_HELD)

    async def get(self, code_hash: str) -> Bundle:
        """Return the bundle of that hash; raises CodeError when it is missing or the store
        fails."""
        bundle = self._held.get(code_hash)
        if bundle is None:
            try:
                data = await self._store.get(code_key(code_hash))
            except (NotFound, Unavailable) as error:
                raise CodeError(
                    f"the stored code {code_hash} cannot be read: {error}", code="code.load_failed"
                ) from error
            bundle = self._keys.open(data, code_hash)
            self._held[code_hash] = bundle
        return bundle

    def hold(self, code_hash: str, data: bytes) -> None:
        """Cache bytes that were read under the hash; raises Corrupt if they are not that bundle."""
        if code_hash not in self._held:
            self._held[code_hash] = from_stored(data, code_hash)

    async def put(self, bundle: Bundle) -> str:
        """Store a bundle durably under its hash, and return the hash."""
        bundle = self._keys.keyed(bundle)
        code_hash = bundle.content_hash
        if code_hash not in self._held:
            try:
                await self._store.create(code_key(code_hash), self._keys.seal(bundle))
            except AlreadyExists:
                pass
        self._held[code_hash] = bundle
        return code_hash


class CodeResolver:
    """The platform's side of loading: one object, in the loader actor or in the one process."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        ttl_s: float,
        load: Callable[[str], Any] | None = None,
        app: App | None = None,
        peer: Callable[[str], Calls] | None = None,
        callbacks: Callbacks | None = None,
        keys: CodeKeys | None = None,
    ) -> None:
        self.is_app = app is not None
        self._callbacks = callbacks or Callbacks()
        self._keys = keys or CodeKeys()
        self._bundles = Bundles(store, self._keys)
        self._clock = clock
        self._ttl_us = round(ttl_s * 1_000_000)
        self._load = load
        self._app = app
        self._peer = peer
        self._live: LRUCache[str, Grants] = LRUCache(LIVE_HELD)
        self._held: TTLCache[tuple[Any, ...], _Answer] = TTLCache(
            ANSWERS_HELD, self._ttl_us, timer=clock.now_us
        )
        self._under_way: dict[tuple[Any, ...], asyncio.Task[Any]] = {}
        self._dispatches = Dispatches(self._under_way)

    async def current(
        self, tenant_id: str, *, binding: str | None = None, metadata: bytes | None = None
    ) -> Resolved:
        """Return the stored code for new instances; runs `load` or the dispatcher unless cached."""
        if self._app is not None:
            if metadata is None:
                raise _untagged()
            key: tuple[Any, ...] = ("app", tenant_id, binding, metadata)
            answer = await self._once(key, lambda: self._dispatch(binding, metadata))
        else:
            key = ("load", tenant_id)
            answer = await self._once(key, lambda: self._loaded(tenant_id))
        assert isinstance(answer.value, Resolved)
        return msgspec.structs.replace(answer.value, until_us=answer.until_us)

    async def worker(self, name: str | None, source: object) -> WorkerRef:
        """Load a worker of the WorkerLoader; a named one is cached for a while."""
        if name is None:
            return await self._made_worker(name, source)
        answer = await self._once(("worker", name), lambda: self._made_worker(name, source))
        assert isinstance(answer.value, WorkerRef)
        return answer.value

    async def bundle(self, code_hash: str) -> Bundle:
        """Return the stored bundle."""
        return await self._bundles.get(code_hash)

    async def keep(self, bundle: Bundle) -> str:
        """Store a bundle under its hash."""
        return await self._bundles.put(bundle)

    async def forget(self, tenant_id: str) -> None:
        """Run the callback again for the next `current`."""
        for key in [key for key in self._held if key[1] == tenant_id]:
            self._held.pop(key, None)

    def hold_live_of(self, bundle: Bundle, grants: Grants) -> None:
        """Use these service objects for a bundle that is about to be stored."""
        self.hold_live(self._keys.keyed(bundle).content_hash, grants)

    def hold_live(self, code_hash: str, grants: Grants) -> None:
        """Use these service objects for the bundle: they were made in this process."""
        self._live[code_hash] = grants

    def live(self, code_hash: str) -> Grants:
        """Return the services that came with the newest answer of this hash."""
        return self._live.get(code_hash, {})

    def calls(self, tenant_id: str) -> Calls:
        """Return the calls of a tenant."""
        if self._peer is None:
            raise Unavailable("no tenant can be called from here")
        return self._peer(tenant_id)

    peer = calls

    @property
    def under_way(self) -> Mapping[tuple[Any, ...], asyncio.Task[Any]]:
        """The running callbacks of the platform, by what they resolve."""
        return self._under_way

    async def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> _Answer:
        """Return the cached answer, the pending one, or a new one; failures are not cached."""
        held = self._held.get(key)
        if held is not None:
            return held
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(self._timed(make))
            task.add_done_callback(lambda done: self._arrived(key, done))
        # The answer is shared: who gives up waiting does not end the work.
        return cast(_Answer, await asyncio.shield(task))

    async def _timed(self, make: Callable[[], Any]) -> _Answer:
        value = await make()
        return _Answer(value, self._clock.now_us() + self._ttl_us)

    def _arrived(self, key: tuple[Any, ...], task: asyncio.Task[Any]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            self._held[key] = task.result()

    async def _loaded(self, tenant_id: str) -> Resolved:
        load = self._load
        if load is None:
            raise CodeError(
                f"nothing says what the code of tenant {tenant_id!r} is: connect(load=...) or "
                "deploy() it",
                code="code.load_failed",
            )
        what = f"load({tenant_id!r})"
        code = await _answer(what, lambda: self._callbacks.answer_of(load, tenant_id))
        mark("loader: has the code")
        resolved = Resolved(await self._stored(what, code, own_binding=True))
        mark("loader: has stored the code")
        return resolved

    async def _stored(self, what: str, code: object, *, own_binding: bool) -> str:
        if not isinstance(code, WorkerCode):
            raise CodeError(
                f"{what} answered {_kind(code)}: let it return a WorkerCode(main_module, modules)"
            )
        bundle, grants = bundle_of(code, own_binding=own_binding)
        check_declared(bundle.schedules)
        code_hash = await self._bundles.put(bundle)
        self.hold_live(code_hash, grants)
        return code_hash

    async def _made_worker(self, name: str | None, source: object) -> WorkerRef:
        what = f"the callback of worker {name!r}"
        code = source
        if callable(source):
            code = await _answer(what, lambda: self._callbacks.answer_of(source))
        tenant_id = _tenant_of(code) if isinstance(code, WorkerCode) else None
        if tenant_id is None:
            # A worker that is no tenant's runs under its own id, where that could be a tenant's.
            tenant_id = name if name is not None and is_tenant_id(name) else "worker"
        check_tenant_id(tenant_id)  # before anything is stored
        code_hash = await self._stored(what, code, own_binding=False)
        return WorkerRef(tenant_id, code_hash, name or code_hash)

    async def _dispatch(self, binding: str | None, metadata: bytes) -> Resolved:
        """Run the dispatcher's workflow up to where it hands over to the tenant's entrypoint."""
        assert self._app is not None
        kind = self._app.workflows.get(binding or "WORKFLOWS")
        if kind is None:
            raise CodeError(
                f"the app has no workflow binding {binding!r}: it has "
                f"{', '.join(self._app.workflows) or 'none'}",
                code="code.load_failed",
            )
        run = self._run_of(kind, binding, metadata, None)
        try:
            stub = await _answer("load_runner", run.handed_over)
        finally:
            await run.cancel()
        resolved = await self._target(stub)
        return msgspec.structs.replace(resolved, is_own=not only_dispatches(kind))

    async def dispatch(
        self, tenant_id: str, binding: str | None, metadata: bytes, asked: Sequence[PendingDispatch]
    ) -> list[Resolved]:
        """Return the code for each of these new instances."""
        kind = None if self._app is None else self._app.workflows.get(binding or "WORKFLOWS")
        if kind is None or only_dispatches(kind):
            code = await self.current(tenant_id, binding=binding, metadata=metadata)
            return [code] * len(asked)
        ticket = SystemIds().token()

        def runs() -> list[Dispatch]:
            return [self._run_of(kind, binding, metadata, one) for one in asked]

        stubs = await _answer("load_runner", lambda: self._dispatches.hand_over(runs, ticket))
        try:
            found = [await self._target(stub) for stub in stubs]
        except BaseException:
            self._dispatches.conclude(ticket, False)
            raise
        return [msgspec.structs.replace(one, is_own=True, ticket=ticket) for one in found]

    async def dispatched(self, ticket: str, is_stored: bool) -> None:
        """Report whether the instances of the ticket were created."""
        self._dispatches.conclude(ticket, is_stored)

    def _run_of(
        self, kind: type[Any], binding: str | None, metadata: bytes, asked: PendingDispatch | None
    ) -> Dispatch:
        event = DispatchEvent(
            payload=None if asked is None else values.decode(asked.params),
            timestamp=to_datetime(self._clock.now_us()),
            instance_id=None if asked is None else asked.instance_id,
            workflow_name=binding,
            schedule=None,
            metadata=values.decode(metadata),
        )
        return Dispatch(kind, self.dispatcher_env(), event)

    async def _target(self, stub: EntrypointStub) -> Resolved:
        worker, name = target_of(stub)
        if worker is None:
            raise CodeError(
                "load_runner has to answer an entrypoint of a loaded worker",
                code="code.load_failed",
            )
        ref = await worker.ref()
        return Resolved(ref.code_hash, workflow=name or "Default")

    def dispatcher_env(self) -> Record:
        """Return `env` of the dispatcher's classes."""
        assert self._app is not None
        return dispatcher_env(self._app, self)


def dispatcher_env(app: App, workers: Workers) -> Record:
    """Return what a dispatcher's classes see: the app's own values, LOADER, and raw bindings by
    name."""
    raw = {name: WorkflowBinding(_RawCalls(name), None) for name in app.workflows}
    return Record(**(raw | app.env), LOADER=WorkerLoader(workers))


class _RawCalls:
    """The calls of a dispatcher's own binding, which belongs to no tenant; refuses every call."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        """Refuse the call."""
        if isinstance(call, CreateBatch):
            raise _untagged()
        raise InvalidError(
            f"the dispatcher's own binding {self._name} knows no tenant: go through "
            "platform.tenant(id), or the tenant's own binding"
        )


def _untagged() -> MissingDispatcherMetadataError:
    return MissingDispatcherMetadataError(
        "a create on a dispatcher's own binding carries no metadata: give tenants "
        "wrap_workflow_binding({...}) and create through that"
    )


async def _answer(what: str, callback: Callable[[], Any]) -> Any:
    """Return what a platform's callback returns; raises `code.load_failed` when it raises."""
    try:
        return await answer_of(callback)
    except WorkflowsError:
        raise
    except Exception as error:
        if isinstance(error, ValidationError) and error.title == WorkerCode.__name__:
            raise CodeError(f"{what} makes a WorkerCode that cannot be: {_faults(error)}") from None
        raise CodeError(
            f"{what} raised {type(error).__name__}: {error}", code="code.load_failed"
        ) from error


def _kind(value: object) -> str:
    """Describe what a callback returned in place of a WorkerCode, without its content."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of type {type(value).__name__}"


def _faults(error: ValidationError) -> str:
    """Describe in a line what is wrong with the fields of a WorkerCode, without their content."""
    found = {}
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        field = [str(part) for part in one["loc"] if part != "[key]"]
        found[".".join(field[:2])] = one["msg"].removeprefix("Input ")
    return "; ".join(f"{field} {message}" for field, message in found.items())


def _tenant_of(code: WorkerCode) -> str | None:
    """Return the tenant that a worker's own bindings are tagged with."""
    for value in code.env.values():
        metadata = getattr(value, "metadata", None)
        if isinstance(metadata, dict) and isinstance(metadata.get("tenant_id"), str):
            return str(metadata["tenant_id"])
    return None
