"""Worker: code that a service loads by hand, and stubs to call what it exports.

A stub holds no isolate: each call names the code, and the tenant that the code belongs to runs it
in an isolate of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.ids import Ids, SystemIds

from ..protocol.calls import Calls, InvokeMethod
from ..sdk import http
from ..sdk.service import DispatchStep
from .bundle import WorkerCode


class WorkerRef(msgspec.Struct, frozen=True):
    """A worker's address: the tenant that supervises it, its code, and its own name."""

    tenant_id: str
    code_hash: str
    worker: str


class Workers(Protocol):
    """Loads workers, and returns the calls of their tenants."""

    async def worker(self, name: str | None, source: object) -> WorkerRef:
        """Load the worker; `source` is a WorkerCode or a callback that returns one."""
        ...

    def calls(self, tenant_id: str) -> Calls:
        """Return the calls of a tenant."""
        ...


class EntrypointStub:
    """The public methods of an entrypoint class, called from outside its isolate."""

    def __init__(
        self,
        call: Callable[[InvokeMethod], Awaitable[bytes]],
        name: str | None,
        *,
        props: object = None,
        limits: Mapping[str, int] | None = None,
        worker: WorkerStub | None = None,
    ) -> None:
        self._call = call
        self._name = name
        self._props = None if props is None else values.encode(props)
        self._limits = dict(limits) if limits else None
        self._worker = worker

    def __repr__(self) -> str:
        return f"EntrypointStub({self._name!r})"

    async def run(self, *args: object, **kwargs: object) -> Any:
        """Run a dispatched instance by this workflow class: `run(event, step)`.

        With anything else than a dispatcher's `step`, the entrypoint's own method of that name.
        """
        step = args[-1] if args else kwargs.get("step")
        if isinstance(step, DispatchStep):
            return await step.hand_over(self)
        return await self._invoke("run", list(args), kwargs)

    async def fetch(self, request: object) -> http.Response:
        """Answer an HTTP request."""
        answer = await self._invoke("fetch", [http.request_to_plain(request)], {})
        return answer if isinstance(answer, http.Response) else http.Response(answer)

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(f"{method} is not a public method of an entrypoint")

        async def call(*args: object, **kwargs: object) -> Any:
            return await self._invoke(method, list(args), kwargs)

        call.__name__ = method
        return call

    async def _invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        answer = await self._call(
            InvokeMethod(
                entrypoint=self._name,
                method=method,
                args=values.encode([http.to_plain(argument) for argument in args]),
                kwargs=values.encode(
                    {name: http.to_plain(argument) for name, argument in kwargs.items()}
                ),
                props=self._props,
                limits=self._limits,
            )
        )
        return http.from_plain(values.decode(answer))


def target_of(stub: EntrypointStub) -> tuple[WorkerStub | None, str | None]:
    """Return the worker and the class of a stub, whose attribute names are all the entrypoint's."""
    return stub._worker, stub._name


class WorkerStub:
    """A worker that is loaded at its first call."""

    def __init__(
        self, workers: Workers, name: str | None, source: object, *, own: str | None = None
    ) -> None:
        """`own`: the worker has an isolate of its own, shared not even with equal code."""
        self._workers = workers
        self._name = name
        self._source = source
        self._own = own
        self._ref: WorkerRef | None = None

    def __repr__(self) -> str:
        return f"WorkerStub({self._name!r})"

    async def ref(self) -> WorkerRef:
        """Load the worker now, unless it is loaded already."""
        if self._own is None:
            return await self._workers.worker(self._name, self._source)
        if self._ref is None:
            ref = await self._workers.worker(None, self._source)
            self._ref = WorkerRef(ref.tenant_id, ref.code_hash, self._own)
        return self._ref

    def get_entrypoint(
        self,
        name: str | None = None,
        props: object = None,
        limits: Mapping[str, int] | None = None,
    ) -> EntrypointStub:
        """Return a stub of an entrypoint class; None: the default export.

        The class sees `props` as `self.ctx.props`; of `limits` and the code's own, the lower hold.
        """
        return EntrypointStub(self._call, name, props=props, limits=limits, worker=self)

    async def _call(self, call: InvokeMethod) -> bytes:
        ref = await self.ref()
        call.code_hash, call.worker = ref.code_hash, ref.worker
        return await self._workers.calls(ref.tenant_id).call(call)


class WorkerLoader:
    """Loads code that is no tenant's deployment: by id and cached, or once."""

    def __init__(self, workers: Workers, ids: Ids | None = None) -> None:
        self._workers = workers
        self._ids = ids or SystemIds()

    def get(self, id: str, callback: Callable[[], Any]) -> WorkerStub:
        """Return the worker of that id; `callback` returns its WorkerCode when it is not cached.

        Returns at once. The id has to change when the code does, or the old code may answer.
        """
        if not isinstance(id, str) or not id:
            raise TypeError(f"a worker's id is text, not {id!r}")
        if not callable(callback):
            raise TypeError("the callback is a function that answers a WorkerCode")
        return WorkerStub(self._workers, id, callback)

    def load(self, code: object) -> WorkerStub:
        """Return a new worker for this code, in an isolate of its own.

        `code` is a WorkerCode, or a callback that answers one. Each `load` is another worker; all
        stubs of one are the same, until the isolate has been idle for long.
        """
        if not callable(code) and not isinstance(code, WorkerCode):
            raise TypeError(f"load takes a WorkerCode, not {type(code).__name__}")
        return WorkerStub(self._workers, None, code, own=f"load:{self._ids.token()}")
