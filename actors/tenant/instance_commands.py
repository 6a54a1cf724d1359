"""InstanceCommands: calls that create instances of a tenant, or change them."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.protocol.calls import (
    CreateBatch,
    DeleteBatch,
    DeleteFailure,
    DeleteInstance,
    DeleteOutcome,
    PauseInstance,
    RestartInstance,
    ResumeInstance,
    SendEvent,
    TerminateInstance,
)

from ..background_tasks import BackgroundTasks
from ..code.code_resolver import Resolved
from ..code.dispatcher_runs import PendingDispatch
from ..core.tenant_core import TenantCore
from ..hosting.code_cache import CodeCache, envelope
from ..instances import identifiers
from ..instances.decisions import CreateItem, Key
from ..settings.platform_config import PlatformConfig
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

    async def create_batch(self, call: CreateBatch) -> list[str]:
        """Create instances; return the ids of those that are new, once they are durable."""
        wanted, binding, metadata = call.workflow, call.binding, call.metadata
        if wanted is not None:
            identifiers.check_workflow_name(wanted)
        items = call_arguments.create_items(
            call,
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
            created = await self._create(
                await self._with_code(items, codes, wanted), strict=call.strict
            )
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

    async def _loaded(self, workflow: str | None, instance_id: str) -> Key:
        """Load the instance that a command is for; return its key."""
        key = self._keys.find(workflow, instance_id)
        while not self._core.is_loaded(key):
            await self._loader.load(key)
        self._state.check_open()
        return key

    async def pause(self, call: PauseInstance) -> None:
        """Pause an instance."""
        key = await self._loaded(call.workflow, call.id)
        now_us = self._clock.now_us()
        await self._commits.commit(self._core.pause(key, token=call.token, now_us=now_us))

    async def resume(self, call: ResumeInstance) -> None:
        """Resume an instance that was paused or parked."""
        key = await self._loaded(call.workflow, call.id)
        now_us = self._clock.now_us()
        await self._commits.commit(self._core.resume(key, token=call.token, now_us=now_us))

    async def terminate(self, call: TerminateInstance) -> None:
        """End an instance for good; with rollback, finished steps are undone first."""
        key = await self._loaded(call.workflow, call.id)
        decision = self._core.terminate(
            key, rollback=call.rollback, token=call.token, now_us=self._clock.now_us()
        )
        await self._commits.commit(decision)

    async def restart(self, call: RestartInstance) -> None:
        """Run an instance again, from the top or from a step."""
        key = await self._loaded(call.workflow, call.id)
        target = None if call.from_ is None else msgspec.structs.asdict(call.from_)
        decision = self._core.restart(
            key, from_=target, token=call.token, now_us=self._clock.now_us()
        )
        await self._commits.commit(decision)

    async def send_event(self, call: SendEvent) -> None:
        """Deliver an event to an instance."""
        event_type = identifiers.check_event_type(call.type)
        payload = call_arguments.value(call.payload, self._config.value_bytes_max)
        key = await self._loaded(call.workflow, call.id)
        decision = self._core.send_event(
            key, event_type, payload, token=call.token, now_us=self._clock.now_us()
        )
        await self._commits.commit(decision)

    async def delete(self, call: DeleteInstance) -> None:
        """Delete an instance. Raises `instance.not_found`."""
        await self._delete(self._keys.find(call.workflow, call.id), call.token)

    async def _delete(self, key: Key, token: str | None) -> None:
        self._state.check_open()
        now_us = self._clock.now_us()
        await self._commits.commit(self._core.delete(key, token=token, now_us=now_us))

    async def delete_batch(self, call: DeleteBatch) -> DeleteOutcome:
        """Delete instances; return those deleted, and an error for each of the others."""
        identifiers.check_batch(call.ids)
        ids = [identifiers.check_id(one) for one in call.ids]
        if call.workflow is None:
            return await self._delete_scattered(ids, call.token)
        workflow = identifiers.check_workflow_name(call.workflow)
        now_us = self._clock.now_us()
        decision = self._core.delete_batch(workflow, ids, token=call.token, now_us=now_us)
        return msgspec.convert(await self._commits.commit(decision), DeleteOutcome)

    async def _delete_scattered(self, ids: list[str], token: str | None) -> DeleteOutcome:
        """Delete instances of whichever workflows."""
        outcome = DeleteOutcome()
        failures: dict[str, WorkflowsError | None] = {}
        for one in ids:
            if one not in failures:
                try:
                    await self._delete(self._keys.find(None, one), token)
                    failures[one] = None
                except WorkflowsError as error:
                    failures[one] = error
            failure = failures[one]
            if failure is None:
                outcome.deleted.append(one)
            else:
                outcome.errors.append(DeleteFailure(one, failure.code, failure.message))
        return outcome
