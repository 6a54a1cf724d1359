"""The guest alone: what a step costs the process that tenant code runs in.

A supervisor in the same process answers every step at once, and keeps what a log would keep; its
own time is taken off. CPU time, not wall time: other processes of the machine do not count. No disk
and no other process takes part, so these figures bound W3 and W11 from above.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from measure import Run, arguments, main

from dynamic_workflows.loaders.guest.guest import Guest
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import Frame, RecordedStep, pack

CODE = b"""
import asyncio
from dynamic_workflows import WorkflowEntrypoint

class Plain(WorkflowEntrypoint):
    async def run(self, event, step):
        for n in range(event.payload):
            await step.do("one", lambda: {"ok": True, "n": n})

class Coroutines(WorkflowEntrypoint):
    async def run(self, event, step):
        async def one(ctx):
            return {"ok": True, "n": 1}
        for n in range(event.payload):
            await step.do("one", one)

class Decorated(WorkflowEntrypoint):
    async def run(self, event, step):
        for n in range(event.payload):
            @step.do("one")
            async def one():
                return {"ok": True, "n": n}
            await one()

class Together(WorkflowEntrypoint):
    async def run(self, event, step):
        async def one():
            return {"ok": True, "n": 1}
        for _ in range(event.payload // 100):
            await asyncio.gather(*(step.do("one", one) for _ in range(100)))
"""

QUESTION = "The guest alone: CPU time of a step, and steps replayed in a second"
LIVES, STEPS, REPLAYED = 100, 100, 10_000


class Supervisor:
    """Answers steps, and remembers those of one lifetime."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.guest = Guest(self._take, loop=self.loop, is_alone=False, prefix=f"bench_{id(self)}")
        self.guest.receive(
            [pack(messages.Load("index.py", [messages.Module("index.py", "py", CODE)], []))]
        )
        self.remembered = 0
        self.history: dict[int, RecordedStep] = {}
        self.spent_s = 0.0
        self._tokens: dict[int, int] = {}
        self._moment = 0
        self._open: set[int] = set()
        self._ended = self.loop.create_future()

    async def play(self, runs: dict[int, messages.Run]) -> float:
        """Run lifetimes to their ends; the CPU seconds, those of this class taken off."""
        self._open, self._ended = set(runs), self.loop.create_future()
        self.spent_s = 0.0
        frames = [pack(run, life=life) for life, run in runs.items()]
        start = time.process_time()
        self.guest.receive(frames)
        await self._ended
        return time.process_time() - start - self.spent_s

    def _take(self, frames: list[Frame]) -> None:
        start = time.process_time()
        answers = []
        for kind, life, body in frames:
            message: Any = messages.unpack_from_guest(kind, body)
            if type(message) is messages.StepRequest:
                answers.append(pack(messages.Go(message.token, 1), life=life))
            if type(message) is messages.End:
                assert message.error is None, message.error
                self._open.discard(life)
            assert type(message) is not messages.Mismatch, message
            if life == self.remembered:
                self._remember(message)
        if answers:
            self.loop.call_soon(self.guest.receive, answers)
        if not self._open and not self._ended.done():
            self._ended.set_result(None)
        self.spent_s += time.process_time() - start

    def _remember(self, message: Any) -> None:
        self._moment += 1
        if type(message) is messages.StepRequest:
            self._tokens[message.token] = message.count
            self.history[message.count] = RecordedStep(
                "do", "one", message.count, 0, None, None, message.at, self._moment
            )
        elif type(message) is messages.Done:
            known = self.history[self._tokens[message.token]]
            known.outcome, known.value, known.ended = 1, message.value, self._moment


def started(workflow: str, steps: int, history: list[RecordedStep]) -> messages.Run:
    return messages.Run(workflow, "one", b"%d" % steps, 0, history, 1_000_000)


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[Run]:
    """The workload, in this process."""

    async def run() -> dict[tuple[str, str], float]:
        figures: dict[tuple[str, str], float] = {}
        for workflow in ("Plain", "Coroutines", "Decorated", "Together"):
            supervisor = Supervisor()
            lives = {life: started(workflow, STEPS, []) for life in range(1, LIVES + 1)}
            spent_s = await supervisor.play(lives)
            figures[(f"{workflow}, live", "µs/step")] = spent_s / (LIVES * STEPS) * 1e6
            supervisor.remembered = LIVES + 1
            await supervisor.play({LIVES + 1: started(workflow, REPLAYED, [])})
            supervisor.remembered = 0
            history = list(supervisor.history.values())
            spent_s = await supervisor.play({LIVES + 2: started(workflow, REPLAYED, history)})
            figures[(f"{workflow}, replayed", "steps/s")] = REPLAYED / spent_s
            supervisor.guest.close()
        return figures

    yield run


if __name__ == "__main__":
    main(QUESTION, arguments(QUESTION).parse_args(), measured)
