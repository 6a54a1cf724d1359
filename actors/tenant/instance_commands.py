"""InstanceCommands: calls that create instances of a tenant, or change them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.tracing import mark

from ..background_tasks import BackgroundTasks
from ..code.code_resolver import Resolved
from ..code.dispatcher_runs import PendingDispatch
from ..config import PlatformConfig
from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache, envelope
from ..instances import identifiers
from ..instances.decisions import CreateItem, Key
from . import call_arguments
from .commit_pipeline import CommitPipeline
from .instance_keys import InstanceKeys
from .instance_loader import InstanceLoader
from .supervisor_state import SupervisorState


class InstanceCommands:
    """Carries out the calls of one tenant that change instances."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        commits: CommitPipeline,
        keys: InstanceKeys,
        loader: InstanceLoader,
        codes: CodeCache,
        tasks: BackgroundTasks,
        config: PlatformConfig,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._keys = keys
        self._loader = loader
        self._codes = codes
        self._tasks = tasks
        self._config = config
        self._clock = clock
        self._ids = ids

    def _key(self, args: dict[str, Any]) -> Key:
        return self._keys.find(args.get("workflow"), args.get("id"))

    async def create_batch(self, args: dict[str, Any]) -> list[str]:
        """Create instances; return the ids of those that are new, once they are durable."""
        wanted = args.get("workflow")
        metadata = call_arguments.metadata(args)
        if wanted is not None:
            call_arguments.workflow(args)
        binding = call_arguments.optional_text(args, "binding")
        strict = call_arguments.flag(args, "strict")
        items = call_arguments.create_items(
            args,
            workflow=wanted or "TenantWorkflow",
            code_hash="",
            pin=self._config.pin,
            ids=self._ids,
            bytes_max=self._config.value_bytes_max,
            metadata=None if metadata is None else envelope(binding, metadata),
        )
        asked = [PendingDispatch(item.instance_id, item.params) for item in items]
        codes = await self._codes.dispatch(binding, metadata, asked)
        ticket = codes[0].ticket
        is_stored = False
        try:
            created = await self._create(await self._with_code(items, codes, wanted), strict=strict)
            is_stored = True
            return created
        finally:
            if ticket is not None:
                self._tasks.begin(self._codes.dispatched(ticket, is_stored=is_stored))

    async def _with_code(
        self, items: list[CreateItem], codes: list[Resolved], wanted: str | None
    ) -> list[CreateItem]:
        """The items with the code that they get, which has their class; raises CodeError."""
        found = []
        for item, code in zip(items, codes, strict=True):
            name = code.workflow or wanted or "TenantWorkflow"
            if not self._codes.has_workflow(code.code_hash, name):
                await self._codes.check_workflow(code.code_hash, name)
            found.append(replace(item, workflow=name, code_hash=code.code_hash))
        return found

    async def _create(self, items: list[CreateItem], *, strict: bool) -> list[str]:
        mark("worker: can create")
        self._state.check_open()
        decision = self._core.create(items, strict=strict, now_us=self._clock.now_us())
        for item in items:
            self._keys.add_workflow(item.workflow)
        created: list[str] = await self._commits.commit(decision)
        return created

    async def mock_event(self, key: Key, event_type: str, payload: bytes) -> None:
        """Put an event in the place of a real one; for the testing kit."""
        now_us = self._clock.now_us()
        await self._commits.commit(self._core.mock_event(key, event_type, payload, now_us=now_us))

    async def _command(self, args: dict[str, Any], name: str, *extra: Any, **named: Any) -> None:
        """Decide a command on a loaded instance."""
        key = self._key(args)
        while not self._core.is_loaded(key):
            await self._loader.load(key)
        self._state.check_open()
        named |= {
            "token": call_arguments.optional_text(args, "token"),
            "now_us": self._clock.now_us(),
        }
        await self._commits.commit(getattr(self._core, name)(key, *extra, **named))

    async def pause(self, args: dict[str, Any]) -> None:
        """Pause an instance."""
        await self._command(args, "pause")

    async def resume(self, args: dict[str, Any]) -> None:
        """Resume an instance that was paused or parked."""
        await self._command(args, "resume")

    async def terminate(self, args: dict[str, Any]) -> None:
        """End an instance for good; with rollback, finished steps are undone first."""
        await self._command(args, "terminate", rollback=call_arguments.flag(args, "rollback"))

    async def restart(self, args: dict[str, Any]) -> None:
        """Run an instance again, from the top or from a step."""
        await self._command(args, "restart", from_=call_arguments.restart_target(args))

    async def send_event(self, args: dict[str, Any]) -> None:
        """Deliver an event to an instance."""
        event_type = identifiers.check_event_type(args.get("type"))
        payload = call_arguments.value(args, "payload", self._config.value_bytes_max)
        await self._command(args, "send_event", event_type, payload)

    async def delete(self, args: dict[str, Any]) -> None:
        """Delete an instance. Raises `instance.not_found`."""
        key = self._key(args)
        self._state.check_open()
        token = call_arguments.optional_text(args, "token")
        await self._commits.commit(self._core.delete(key, token=token, now_us=self._clock.now_us()))

    async def delete_batch(self, args: dict[str, Any]) -> Any:
        """Delete instances; return those deleted, and an error for each of the others."""
        ids = call_arguments.delete_ids(args)
        if args.get("workflow") is None:
            return await self._delete_scattered(args, ids)
        decision = self._core.delete_batch(
            call_arguments.workflow(args),
            ids,
            token=call_arguments.optional_text(args, "token"),
            now_us=self._clock.now_us(),
        )
        return await self._commits.commit(decision)

    async def _delete_scattered(self, args: dict[str, Any], ids: list[str]) -> dict[str, Any]:
        deleted: list[str] = []
        errors: list[dict[str, str]] = []
        outcomes: dict[str, WorkflowsError | None] = {}
        for name in ids:
            if name not in outcomes:
                try:
                    await self.delete(args | {"id": name})
                    outcomes[name] = None
                except WorkflowsError as error:
                    outcomes[name] = error
            failure = outcomes[name]
            if failure is None:
                deleted.append(name)
            else:
                errors.append({"id": name, "code": failure.code, "message": failure.message})
        return {"deleted": deleted, "errors": errors}
