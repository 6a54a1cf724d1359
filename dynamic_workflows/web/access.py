"""Access: what a request is for, who sent it, and whether that one may."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote

from starlette.requests import Request

from ..actors.instances.identifiers import check_tenant_id, check_workflow_name
from ..loaders.sdk.binding import WorkflowBinding, WorkflowInstance
from ..platform import Platform, Tenant
from .errors import HttpError
from .idempotency import Responses
from .keys import DEPLOY, READ, RUN, TOKEN_PREFIX, Key, Keys

T = TypeVar("T")

_audit = logging.getLogger("dynamic_workflows.audit")
_LOCAL = Key("admin", name="local")
_DENIED = {
    READ: "may not look at this",
    RUN: "may not steer instances: that takes the role operator or admin",
    DEPLOY: "may not deploy code: that takes the role deployer or admin",
}


@dataclass
class AppState:
    """What all routes of one application share."""

    platform: Platform
    keys: Keys | None
    """None: programs of this machine need no key, and nobody else is served."""
    body_bytes_max: int
    streams_max: int
    streams: int = 0
    """How many event streams are open."""
    responses: Responses = field(default_factory=Responses)


class Access:
    """One request, after its key was checked for an action on what its path names.

    Raises `key.missing`, `key.invalid`, `key.forbidden`, and what is wrong with a name in the path.
    """

    def __init__(self, request: Request, action: str, *, in_query: bool = False) -> None:
        self.request = request
        self.service: AppState = request.app.state.service
        self.platform = self.service.platform
        names = {name: _unquoted(text) for name, text in request.path_params.items()}
        self.names = names
        self.tenant_id: str | None = names.get("tenant")
        self.workflow_name: str | None = names.get("workflow")
        self.key = self._key(in_query)
        if not self.key.allows(action):
            raise HttpError(f"this key {_DENIED[action]}", code="key.forbidden")
        if not self.key.covers(self.tenant_id, self.workflow_name, names.get("id")):
            raise HttpError("this key is for something else", code="key.forbidden")
        if self.tenant_id is not None:
            check_tenant_id(self.tenant_id)
        if self.workflow_name is not None:
            check_workflow_name(self.workflow_name)

    def _key(self, in_query: bool) -> Key:
        scheme, _, text = self.request.headers.get("authorization", "").partition(" ")
        if not text and in_query:
            # A browser's EventSource sends no headers: there a short-lived token may be in the URL.
            token = self.request.query_params.get("access_token", "")
            scheme, text = "bearer", token if token.startswith(TOKEN_PREFIX) else ""
        if self.service.keys is None:
            return _local_key(self.request)
        if scheme.lower() != "bearer" or not text:
            raise HttpError("send a key: `Authorization: Bearer …`", code="key.missing")
        key = self.service.keys.find(text.strip())
        if key is None:
            raise HttpError("this key is unknown or has expired", code="key.invalid")
        return key

    @property
    def tenant(self) -> Tenant:
        """The tenant that the path names."""
        assert self.tenant_id is not None
        found: Tenant = self.platform.tenant(self.tenant_id)
        return found

    @property
    def workflow(self) -> WorkflowBinding:
        """The workflow class that the path names."""
        assert self.workflow_name is not None
        return self.tenant.workflow(self.workflow_name)

    async def instance(self) -> WorkflowInstance:
        """The instance that the path names; raises `instance.not_found`."""
        return await self.workflow.get(self.names["id"])

    def audit(self, what: str, **facts: object) -> None:
        """Tell the log `dynamic_workflows.audit` of a change: who, what, to whom, from where."""
        client = self.request.client
        line = {
            "what": what, "key": self.key.name, "role": self.key.role,
            "from": client.host if client else None, "tenant": self.tenant_id,
            "workflow": self.workflow_name, "instance": self.names.get("id"), **facts,
        }  # fmt: skip
        said = {name: fact for name, fact in line.items() if fact is not None}
        _audit.info("%s", json.dumps(said, default=str))

    async def while_asked(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` answers; it is cancelled when the client hangs up."""
        task = asyncio.ensure_future(work())
        gone = asyncio.ensure_future(_disconnected(self.request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise asyncio.CancelledError
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise HttpError("a part of the path is no UTF-8") from None


def _local_key(request: Request) -> Key:
    """All rights for a program of this machine that asks directly.

    A proxy hides who asks, so what came through one is refused. A page of a stranger may name this
    machine by a domain of its own (DNS rebinding): only addresses and names without a dot count.
    """
    client = request.client.host if request.client else ""
    host = request.headers.get("host", "").rpartition("@")[2]
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    forwarded = {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(request.headers.keys())
    origin = request.headers.get("origin")
    is_own_page = origin is None or origin.partition("://")[2] == host
    if _is_loopback(client) and not forwarded and is_own_page and _is_local_name(name):
        return _LOCAL
    raise HttpError(
        "without keys only programs of this machine are served: give create_app(keys=…)",
        code="key.missing",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "testclient", "")


def _is_local_name(name: str) -> bool:
    return "." not in name.rstrip(".") or _is_loopback(name)
