"""EnvCallHandler: answers calls of tenant code on the bindings in its `env`, with its rights."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import (
    CodeError,
    InvalidError,
    LimitExceededError,
    WorkflowsError,
)
from dynamic_workflows.loaders.bundles.bundle import Granted
from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.calls import (
    Calls,
    CreateBatch,
    StatusData,
    WhyData,
    pack_answer,
    unpack_tenant_call,
)

from ..code.code_resolver import CodeSource
from ..core.tenant_core import TenantCore
from ..hosting.code_host import Host
from ..hosting.service_errors import ServiceErrors, says_so
from ..instances.identifiers import check_tenant_id
from .commit_pipeline import CommitPipeline
from .operations import Operations


class EnvCallHandler:
    """Answers the calls of guests."""

    def __init__(
        self, core: TenantCore, commits: CommitPipeline, operations: Operations, codes: CodeSource
    ) -> None:
        self._core = core
        self._commits = commits
        self._operations = operations
        self._codes = codes
        self._errors = ServiceErrors(core.tenant_id)
        self.services_out: dict[object, object] = {}
        """Calls of services that have no answer yet, each with what it calls."""

    async def answer(self, host: Host, life: int, call: messages.CallRequest) -> None:
        """Carry out the call and send the outcome, whatever it is."""
        host.calls_out += 1
        try:
            reply = await self._answer(host, life, call)
        finally:
            host.calls_out -= 1
        self._core.note_reply(life)
        host.send([messages.pack(reply, life=life)])

    async def _answer(self, host: Host, life: int, call: messages.CallRequest) -> messages.Reply:
        try:
            # What the code did before it called is safe before the call takes effect.
            await self._commits.caught_up()
            if not host.count_subrequest(life):
                raise LimitExceededError(
                    f"the code may call its bindings {host.limits['subrequests']} times",
                    limit="subrequests",
                )
            return messages.Reply(call.call, value=await self._value(host, call))
        except Exception as error:  # of a service too: it reaches the tenant as data
            return messages.Reply(call.call, error=self._told(host, call, error))

    def _told(self, host: Host, call: messages.CallRequest, error: Exception) -> messages.Error:
        assert host.bundle is not None
        assert host.services is not None
        where = plain(f"{call.target}.{call.method}" if call.target else "the gateway", 256)
        granted = host.bundle.granted(call.target)
        if granted is None or granted.kind == "service":
            public = host.services.public_errors(call.target)
        else:
            # Our own words for whoever calls, as long as they name no places of the platform's;
            # of code that cannot be loaded, `_workflows` has left what tenants may know.
            public = (TimeoutError, CodeError, *([type(error)] if says_so(error) else []))
        return self._errors.told(error, where, public)

    async def _value(self, host: Host, call: messages.CallRequest) -> bytes:
        assert host.bundle is not None, "it has sent a frame"
        assert host.services is not None
        if not call.target:
            if call.method != "fetch":
                raise InvalidError(f"the gateway has no method {call.method!r}")
            return await self._served(call, host.services.fetch(call.args, call.kwargs))
        granted = host.bundle.granted(call.target)
        if granted is None or granted.kind == "value":
            raise InvalidError(f"env has nothing to call under the name {call.target!r}")
        if granted.kind == "service":
            return await self._served(
                call, host.services.call(call.target, call.method, call.args, call.kwargs)
            )
        return await self._workflows(granted, call)

    async def _served(self, call: messages.CallRequest, answer: Awaitable[bytes]) -> bytes:
        this = object()
        self.services_out[this] = (call.target, call.method)
        try:
            return await answer
        finally:
            del self.services_out[this]

    async def _workflows(self, granted: Granted, call: messages.CallRequest) -> bytes:
        asked = unpack_tenant_call(call.method, call.args)
        calls: Calls = self._operations
        if granted.metadata is not None:
            if isinstance(asked, CreateBatch):
                asked.metadata, asked.binding = granted.metadata, granted.binding_name
            tenant_id = _tenant_of(granted.metadata)
            if tenant_id is not None and tenant_id != self._core.tenant_id:
                calls = self._codes.peer(check_tenant_id(tenant_id))
        try:
            answer: object = await calls.call(asked)
            # A dispatcher answers its tenants, and says what they are to know; `load` does not.
            return pack_answer(answer if self._codes.is_app else _for_tenant(answer))
        except CodeError as error:
            if error.code != _LOAD_FAILED or self._codes.is_app:
                raise
            raise CodeError(_NOT_LOADED, code=_LOAD_FAILED) from None


def _for_tenant(answer: object) -> object:
    """The answer without what only the platform is to know."""
    if isinstance(answer, StatusData) and answer.reason_code == _LOAD_FAILED:
        return msgspec.structs.replace(answer, reason_message=_NOT_LOADED)
    if isinstance(answer, WhyData) and answer.code == _LOAD_FAILED:
        return WhyData(answer.code, _NOT_LOADED)
    return answer


# What a platform's own callback raises may hold addresses and passwords of its own.
_LOAD_FAILED = "code.load_failed"
_NOT_LOADED = "the platform cannot load the code now; it is tried again"


def _tenant_of(metadata: bytes) -> str | None:
    try:
        value = values.decode(metadata)
    except WorkflowsError:
        return None
    tenant_id = value.get("tenant_id") if isinstance(value, dict) else None
    return tenant_id if isinstance(tenant_id, str) else None
