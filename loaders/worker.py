"""Worker: code loaded by hand, and stubs to call what it exports.

A stub holds no isolate: each call says which code it wants, and the tenant that the code belongs to
runs it in an isolate of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from ..eventlog import codec
from . import http
from .calls import Calls
from .service import DispatchStep


class WorkerRef(msgspec.Struct, frozen=True):
    """Where a worker runs: the tenant that supervises it, its code, and its own name."""

    tenant_id: str
    code_hash: str
    worker: str


class Workers(Protocol):
    """Somebody who loads workers and knows the way to their tenants."""

    async def worker(self, name: str | None, source: Any) -> WorkerRef:
        """Load the worker; `source` is a WorkerCode or a callback that answers one."""
        ...

    def calls(self, tenant_id: str) -> Calls:
        """The calls of a tenant."""
        ...


class EntrypointStub:
    """The public methods of an entrypoint class, called from outside its isolate."""

    def __init__(
        self,
        call: Callable[[dict[str, Any]], Awaitable[bytes]],
        name: str | None,
        *,
        props: Any = None,
        limits: Mapping[str, int] | None = None,
        worker: WorkerStub | None = None,
    ) -> None:
        self._call = call
        self._name = name
        self._props = None if props is None else codec.encode(props)
        self._limits = dict(limits) if limits else None
        self._worker = worker

    def __repr__(self) -> str:
        return f"EntrypointStub({self._name!r})"

    @property
    def target(self) -> tuple[WorkerStub | None, str | None]:
        """The worker and the class behind the stub."""
        return self._worker, self._name

    async def run(self, event: Any, step: Any) -> Any:
        """Hand a dispatched instance over to this workflow class."""
        if not isinstance(step, DispatchStep):
            raise TypeError("run() of a loaded workflow is for dispatchers: use create()")
        return await step.hand_over(self)

    async def fetch(self, request: Any) -> http.Response:
        """Answer an HTTP request."""
        answer = await self._invoke("fetch", [http.request_to_plain(request)], {})
        return answer if isinstance(answer, http.Response) else http.Response(answer)

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(f"{method} is not a public method of an entrypoint")

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._invoke(method, list(args), kwargs)

        call.__name__ = method
        return call

    async def _invoke(self, method: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        answer = await self._call(
            {
                "entrypoint": self._name,
                "method": method,
                "args": codec.encode(args),
                "kwargs": codec.encode(kwargs),
                "props": self._props,
                "limits": self._limits,
            }
        )
        return http.from_plain(codec.decode(answer))


class WorkerStub:
    """A worker that is loaded when it is first called."""

    def __init__(self, workers: Workers, name: str | None, source: Any) -> None:
        self._workers = workers
        self._name = name
        self._source = source

    def __repr__(self) -> str:
        return f"WorkerStub({self._name!r})"

    async def ref(self) -> WorkerRef:
        """Load it now, unless it is held already."""
        return await self._workers.worker(self._name, self._source)

    def get_entrypoint(
        self,
        name: str | None = None,
        props: Any = None,
        limits: Mapping[str, int] | None = None,
    ) -> EntrypointStub:
        """A stub of an entrypoint class; None: the default export.

        The class sees `props` as `self.ctx.props`; of `limits` and the code's own, the lower hold.
        """
        return EntrypointStub(self._call, name, props=props, limits=limits, worker=self)

    async def _call(self, args: dict[str, Any]) -> bytes:
        ref = await self.ref()
        where = {"code_hash": ref.code_hash, "worker": ref.worker}
        answer: bytes = await self._workers.calls(ref.tenant_id).call("invoke", args | where)
        return answer


class WorkerLoader:
    """Loads code that is no tenant's deployment: by id, kept for a while, or once."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def get(self, id: str, callback: Callable[[], Any]) -> WorkerStub:
        """The worker of that id; `callback` answers its WorkerCode when it is not held.

        Returns at once. The id has to change when the code does, or the old code may answer.
        """
        if not isinstance(id, str) or not id:
            raise TypeError(f"a worker's id is text, not {id!r}")
        if not callable(callback):
            raise TypeError("the callback is a function that answers a WorkerCode")
        return WorkerStub(self._workers, id, callback)

    def load(self, code: Any) -> WorkerStub:
        """A worker of its own for this code, shared with nobody."""
        return WorkerStub(self._workers, None, code)
