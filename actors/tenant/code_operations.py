"""CodeOperations: calls about a tenant's code: it is deployed, scheduled, or called itself."""

from __future__ import annotations

import msgspec

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import CodeError, InvalidError
from dynamic_workflows.loaders.bundles import bundle as bundles
from dynamic_workflows.loaders.guest import exception_codec
from dynamic_workflows.loaders.protocol.calls import ChangeSchedule, DeployCode, InvokeMethod

from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache
from ..hosting.code_host import GuestError, HostKey
from ..hosting.code_hosts import Hosts
from ..instances import identifiers
from ..instances.cron import check_declared, is_cron
from .commit_pipeline import CommitPipeline
from .instance_keys import InstanceKeys
from .supervisor_state import SupervisorState


class CodeOperations:
    """Deploys, schedules and calls the code of one tenant."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        commits: CommitPipeline,
        hosts: Hosts,
        codes: CodeCache,
        keys: InstanceKeys,
        clock: Clock,
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._hosts = hosts
        self._codes = codes
        self._keys = keys
        self._clock = clock

    async def invoke(self, call: InvokeMethod) -> bytes:
        """Call a method of an entrypoint; return codec text.

        Raises CodeError, InvalidError, and what the method raised.
        """
        host_key = await self._code_to_invoke(call)
        host = await self._hosts.ready(host_key, fresh=True)
        host = self._hosts.place(host) or host
        name, method = call.entrypoint or "Default", call.method
        export = host.exports.get(name)
        if export is None:
            raise CodeError(
                f"the code exports no entrypoint {name!r}: it has "
                f"{', '.join(sorted(host.exports)) or 'none'}",
                code="code.class_missing",
            )
        if export.kind == "workflow":
            raise InvalidError(
                f"{name!r} is a workflow class: it is run by create() of its binding, and has no "
                "methods to call"
            )
        if method not in export.methods:
            raise InvalidError(f"the entrypoint {name!r} has no public method {method!r}")
        try:
            return await host.invoke(
                entrypoint=call.entrypoint,
                method=method,
                args=call.args,
                kwargs=call.kwargs,
                props=call.props,
            )
        except GuestError as error:
            raise exception_codec.from_wire(error.error) from None

    async def _code_to_invoke(self, call: InvokeMethod) -> HostKey:
        limits = bundles.checked_limits(call.limits)
        narrowed = tuple(sorted(limits.items()))
        if call.code_hash is not None:
            return call.code_hash, call.worker, narrowed
        return (await self._codes.current(None, None)).code_hash, None, narrowed

    async def deploy(self, call: DeployCode) -> str:
        """Put code in place; return its hash. Raises CodeError, and changes nothing then."""
        bundle = bundles.decode(call.bundle)
        check_declared(bundle.schedules)
        code_hash = await self._codes.keep(bundle)
        for name in bundle.schedules:
            await self._codes.check_workflow(code_hash, name)
        self._codes.deployed = code_hash
        payload = msgspec.json.encode({"code_hash": code_hash})
        self._note("code_deployed", payload, code_hash)
        self.follow_schedules(code_hash, bundle.schedules)
        await self._commits.caught_up()
        return code_hash

    async def reload(self) -> None:
        """Forget what is held of the tenant's code, and what was deployed."""
        await self._codes.forget()
        if self._codes.deployed is not None:
            self._codes.deployed = None
            self._note("code_pinned_back", b"{}", None)
            await self._commits.caught_up()

    def _note(self, kind: str, payload: bytes, code_hash: str | None) -> None:
        """Record a fact about the tenant itself."""
        now_us = self._clock.now_us()
        self._commits.take(self._core.note(kind, payload, code_hash=code_hash, now_us=now_us))

    def follow_schedules(self, code_hash: str, schedules: dict[str, list[str]]) -> None:
        """What the code declares holds from now on, and nothing that older code declared."""
        for workflow in sorted({*schedules, *self._core.declared()}):
            # Stored code may be older than the check of what it declares.
            crons = [cron for cron in schedules.get(workflow, []) if is_cron(cron)]
            self._set_schedules(workflow, crons, code_hash, is_declared=True)

    def _set_schedules(
        self, workflow: str, crons: list[str], code_hash: str, *, is_declared: bool = False
    ) -> None:
        pin = "hash" if self._codes.is_app else "latest"
        self._keys.add_workflow(workflow)
        self._commits.take(
            self._core.set_schedules(
                workflow,
                crons,
                code_hash=code_hash,
                pin=pin,
                is_declared=is_declared,
                now_us=self._clock.now_us(),
            )
        )

    async def schedule(self, call: ChangeSchedule) -> None:
        """Add or remove one cron expression of a workflow."""
        workflow, cron = identifiers.check_workflow_name(call.workflow), call.cron
        if call.remove:
            self._state.check_open()
            now_us = self._clock.now_us()
            self._commits.take(self._core.remove_schedule(workflow, cron, now_us=now_us))
        else:
            code_hash = (await self._codes.current(None, None)).code_hash
            await self._codes.check_workflow(code_hash, workflow)
            self._state.check_open()
            crons = self._core.crons(workflow, is_declared=False)
            self._set_schedules(workflow, [*crons, cron], code_hash)
        await self._commits.caught_up()
