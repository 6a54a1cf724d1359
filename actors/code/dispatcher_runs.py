"""Dispatcher runs: runs a platform's own dispatcher class once for each create.

A class is run up to its hand-over, and held there until the tenant has stored the instance; then it
continues. Where the create fails the run is cancelled at the hand-over. It runs on the platform's
side.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any

import msgspec

from dynamic_workflows.eventlog.errors import CodeError
from dynamic_workflows.loaders.bundles.worker import EntrypointStub
from dynamic_workflows.loaders.sdk.entrypoints import build
from dynamic_workflows.loaders.sdk.records import Record
from dynamic_workflows.loaders.sdk.service import DispatchEvent, DispatchStep

from .callbacks import answer_of

_log = logging.getLogger("dynamic_workflows.dispatch")

CONCLUDED_WITHIN_S = 300.0
"""Seconds that a run is held at its hand-over when the tenant does not report on the create."""


class PendingDispatch(msgspec.Struct, frozen=True):
    """An instance that is to be created."""

    instance_id: str
    params: bytes
    """Codec text."""


class Dispatch:
    """One run of a dispatcher's class."""

    def __init__(self, kind: type[Any], env: Record, event: DispatchEvent) -> None:
        self._entrypoint = build(kind, env=env, ctx=Record(props=None))
        self._event = event
        self._step = DispatchStep()
        self.task = asyncio.ensure_future(answer_of(self._run))

    def _run(self) -> Any:
        return self._entrypoint.run(self._event, self._step)

    async def handed_over(self) -> EntrypointStub:
        """Return the entrypoint that the run hands over to; raises what the run raises before,
        CodeError without one."""
        found = self._step.found
        await asyncio.wait({self.task, found}, return_when=asyncio.FIRST_COMPLETED)
        if found.done() and isinstance(found.result(), EntrypointStub):
            stub: EntrypointStub = found.result()
            return stub
        if self.task.done():
            await self.task
        raise CodeError(
            "the dispatcher's workflow ended without handing over to a tenant's entrypoint",
            code="code.load_failed",
        )

    def go_on(self) -> None:
        """Run what follows the hand-over, once the instance is stored; its errors are logged."""
        self.task.add_done_callback(self._ended)
        self._step.release()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error(
                "the dispatcher's workflow failed after it had handed instance %r over, which goes"
                " on",
                self._event.instance_id,
                exc_info=task.exception(),
            )

    async def cancel(self) -> None:
        """Cancel the run at its hand-over, when the create has failed or was not meant."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Dispatches:
    """The runs that are held at their hand-over, by the ticket that the tenant got."""

    def __init__(self, under_way: MutableMapping[Any, asyncio.Task[Any]]) -> None:
        self._held: dict[str, tuple[list[Dispatch], asyncio.TimerHandle]] = {}
        self._under_way = under_way

    async def hand_over(
        self, make: Callable[[], list[Dispatch]], ticket: str
    ) -> list[EntrypointStub]:
        """Return what each run hands over to; holds all, or cancels all where one fails."""
        runs = make()
        for place, run in enumerate(runs):
            self._note(("dispatch", ticket, place), run.task)
        try:
            stubs = [await run.handed_over() for run in runs]
        except BaseException:
            await asyncio.gather(*(run.cancel() for run in runs))
            raise
        loop = asyncio.get_running_loop()
        timer = loop.call_later(CONCLUDED_WITHIN_S, self.conclude, ticket, False)
        self._held[ticket] = (runs, timer)
        return stubs

    def conclude(self, ticket: str, is_stored: bool) -> None:
        """Continue or cancel the runs of a ticket; harmless when that was done before."""
        held = self._held.pop(ticket, None)
        if held is None:
            return
        runs, timer = held
        timer.cancel()
        for run in runs:
            if is_stored:
                run.go_on()
            else:
                run.task.cancel()

    def _note(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key, None))
