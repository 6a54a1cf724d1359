"""A supervisor in miniature for tests of the guest: it records, answers, and can start over.

It keeps what a core would keep of one instance: the outcome of each step by kind, name and
occurrence. Nothing here knows time: tests say when a sleep or a wait is over.
"""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Callable
from typing import Any

import msgspec

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.guest.guest import Guest
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import Frame, RecordedStep, pack

Key = tuple[str, str, int]


class World:
    """One guest, and the history of one instance."""

    def __init__(self, *, retries: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        self.frames: list[list[Frame]] = []
        self.log: list[tuple[int, Any]] = []
        """Every message of the guest, with its life."""
        self.history: dict[Key, RecordedStep] = {}
        self.attempts: dict[Key, int] = {}
        self.tokens: dict[int, Key] = {}
        self.asked: dict[Key, messages.StepRequest] = {}
        self.open: dict[Key, Any] = {}
        """Sleeps and waits that were asked for and are not over."""
        self.moment = 0
        self.life = 0
        self.ended: messages.End | None = None
        self.loaded: messages.CodeLoaded | None = None
        self.is_idle = False
        self.resumed: list[int] = []
        self.retries = retries
        self.on_call: Callable[[messages.CallRequest], messages.Reply] | None = None
        self.before_go: Callable[[Key, int], bool] = lambda key, attempt: True
        """False keeps the Go back: the attempt is recorded, and the life is cut off there."""
        self.sent: dict[int, int] = {}
        self.answered: list[Key] = []
        """Steps of which the present life was sent the end."""
        self._changed = asyncio.Event()
        self.guest = Guest(
            self._take,
            loop=self.loop,
            on_resume=self.resumed.append,
            is_alone=False,
            prefix=f"tenant_world_{id(self):x}",
            idle_grace_s=0.0,
        )

    # --- what the test does -----------------------------------------------------------------------

    def send(self, message: Any, life: int = 0) -> None:
        self.sent[life] = self.sent.get(life, 0) + 1
        self.is_idle = False
        self.loop.call_soon(self.guest.receive, [pack(message, life=life)])

    async def load(
        self,
        code: str | dict[str, str | bytes],
        *,
        env: dict[str, Any] | None = None,
        **options: Any,
    ) -> messages.CodeLoaded:
        files = {"index.py": code} if isinstance(code, str) else code
        modules = [_module(path, data) for path, data in files.items()]
        entries = [_entry(name, value) for name, value in (env or {}).items()]
        self.send(messages.Load("index.py", modules, entries, [], options))
        await self.until(lambda: self.loaded is not None)
        assert self.loaded is not None
        return self.loaded

    def start(self, *, params: Any = None, mode: str = "run", steps_max: int = 10_000) -> int:
        self.life += 1
        self.tokens.clear()
        self.answered.clear()
        self.open.clear()
        self.ended = None
        run = messages.Run(
            "Flow",
            "one",
            values.encode(params),
            1_767_225_600_000_000,
            list(self.history.values()),
            steps_max,
            None,
            mode,
        )
        self.send(run, self.life)
        return self.life

    def drop(self) -> None:
        self.send(messages.Drop(), self.life)

    def finish(
        self, what: str | Key, value: Any = None, *, error: BaseException | None = None
    ) -> None:
        """A sleep or wait is over, told by name or by key."""
        key = next(key for key in self.open if what in (key, key[1]))
        token = self.open.pop(key).token
        if error is not None:
            wired = self.guest.to_wire(error)
            self._record(key, 2, None, wired)
            self._answer(key, messages.StepOutcome(token, None, wired))
        else:
            text = values.encode(value)
            self._record(key, 1, text)
            self._answer(key, messages.StepOutcome(token, text))

    def _answer(self, key: Key, answer: messages.StepOutcome) -> None:
        self.answered.append(key)
        self.send(answer, self.life)

    def deliver(self, what: str | Key, payload: Any, type: str = "t") -> None:
        self.finish(what, {"payload": payload, "timestamp_us": 1_000_000, "type": type})

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_idle(self) -> None:
        await self.until(lambda: self.is_idle)

    async def until_ended(self) -> Any:
        await self.until(lambda: self.ended is not None)
        assert self.ended is not None
        if self.ended.error is not None:
            raise self.guest.from_wire(self.ended.error)
        return None if self.ended.value is None else values.decode(self.ended.value)

    async def run(self, code: str, **options: Any) -> Any:
        """Load, run once, and give the output."""
        loaded = await self.load(code)
        assert loaded.error is None, loaded.error
        self.start(**options)
        return await self.until_ended()

    async def again(self, **options: Any) -> Any:
        """Run once more from the top, over what is recorded."""
        self.start(**options)
        return await self.until_ended()

    def of(self, kind: type[Any], life: int | None = None) -> list[Any]:
        """What the guest said in the present life, by kind of message."""
        wanted = self.life if life is None else life
        return [
            message for number, message in self.log if type(message) is kind and number == wanted
        ]

    def tenant_module(self) -> Any:
        """The main module that was loaded."""
        return self.guest._main

    @property
    def guest_life(self) -> Any:
        """The guest's own object of the present life."""
        return self.guest._lives[self.life]

    @property
    def printed(self) -> list[str]:
        return [message.text for _, message in self.log if type(message) is messages.Log]

    def close(self) -> None:
        self.guest.close()

    # --- what the guest says ----------------------------------------------------------------------

    def _take(self, frames: list[Frame]) -> None:
        self.frames.append(frames)
        for kind, life, body in frames:
            message: Any = messages.unpack_from_guest(kind, body)
            self.log.append((life, message))
            if life in (0, self.life):
                self._hear(life, message)
        self._changed.set()

    def _hear(self, life: int, message: Any) -> None:
        match message:
            case messages.CodeLoaded():
                self.loaded = message
            case messages.StepRequest():
                self._step(message)
            case messages.Sleep() | messages.Wait():
                kind = "sleep" if isinstance(message, messages.Sleep) else "wait_for_event"
                key = (kind, message.name, message.count)
                self.tokens[message.token] = key
                self.open[key] = message
                self._begin(key, message.at)
            case messages.Done():
                key = self.tokens[message.token]
                values.check(message.value)
                self._record(key, 1, message.value)
                self._overtake(key, message.heard)
            case messages.RunTimerFired():
                key = ("timer", "", message.number)
                self._begin(key, message.at)
                self._record(key, 1, None)
                self._overtake(key, message.heard)
            case messages.Cancelled():
                self._cancelled(message)
            case messages.AttemptFailed():
                self._failed(message)
            case messages.End():
                self.ended = message
            case messages.Idle():
                if message.seen == self.sent[life]:
                    self.is_idle = True
            case messages.CallRequest():
                if self.on_call is not None:
                    self.send(self.on_call(message), life)

    def _begin(self, key: Key, at: str | None) -> None:
        if key not in self.history:
            self.moment += 1
            self.history[key] = RecordedStep(*key, 0, None, None, at, self.moment)

    def _record(
        self, key: Key, outcome: int, value: bytes | None, error: messages.Error | None = None
    ) -> None:
        begun = self.history[key]
        self.moment += 1
        self.history[key] = RecordedStep(
            *key, outcome, value, error, begun.at, begun.started, self.moment
        )

    def _overtake(self, key: Key, heard: int) -> None:
        """The guest sent this before it heard of the answers that were on their way to it."""
        late = {k for k in self.answered[heard:] if self.history[k].outcome != 3}
        if heard < 0 or not late:
            return
        first = min(self.history[k].ended for k in late)
        ends = sorted(
            (known for k, known in self.history.items() if known.ended >= first and k != key),
            key=lambda known: known.ended,
        )
        numbers = [known.ended for known in ends] + [self.history[key].ended]
        for known, number in zip([self.history[key], *ends], numbers, strict=True):
            known.ended = number

    def _cancelled(self, message: messages.Cancelled) -> None:
        key = (message.kind, message.name, message.count)
        known = self.history.get(key)
        if known is None or known.outcome not in (0, 1) or (known.outcome and key[0] == "do"):
            return
        self.open.pop(key, None)
        was_open = known.outcome == 0
        self._record(key, 3, None)
        if was_open and key[0] == "do" and message.token:
            self.send(messages.Cancel(message.token, self.attempts.get(key, 0)), self.life)

    def _step(self, message: messages.StepRequest) -> None:
        key = ("do", message.name, message.count)
        assert message.token not in self.tokens, "a token was used twice"
        self.tokens[message.token] = key
        assert self.history.get(key, _NEW).outcome == 0, "the guest asked for a finished step"
        self._begin(key, message.at)
        self.asked[key] = message
        self.go(key)

    def go(self, key: Key) -> None:
        """Record the next attempt and let it run."""
        self.attempts[key] = self.attempts.get(key, 0) + 1
        token = next(token for token, k in self.tokens.items() if k == key)
        if self.before_go(key, self.attempts[key]):
            self.send(messages.Go(token, self.attempts[key]), self.life)

    def _failed(self, message: messages.AttemptFailed) -> None:
        key = self.tokens[message.token]
        if self.history[key].outcome:
            return
        config = msgspec.json.decode(self.asked[key].config)
        error = message.delay_error or message.error
        is_last = message.attempt > config["retries"]["limit"] or error.fatal
        if self.retries and not is_last and not message.delay_error:
            self.go(key)
        else:
            self._record(key, 2, None, error)
            self._answer(key, messages.StepOutcome(message.token, None, error))


_NEW = RecordedStep("do", "", 0, 0)


def _module(path: str, data: str | bytes) -> messages.Module:
    kind = {"py": "py", "json": "json", "txt": "text"}.get(path.rpartition(".")[2], "data")
    text = textwrap.dedent(data).encode() if isinstance(data, str) else data
    return messages.Module(path, kind, text)


def _entry(name: str, value: Any) -> messages.EnvEntry:
    if isinstance(value, messages.EnvEntry):
        return value
    return messages.EnvEntry(name, "value", values.encode(value))


FLOW = """
    import asyncio
    from dynamic_workflows import (
        EgressDeniedError, NonRetryableDelayError, NonRetryableError, StepError,
        UnserialisableValueError, ValueTooLargeError, WorkerEntrypoint, WorkflowEntrypoint,
        WorkflowFatalError, WorkflowInternalError, WorkflowTimeoutError,
    )

    class Flow(WorkflowEntrypoint):
        async def run(self, event, step):
"""


def flow(body: str, before: str = "") -> str:
    """A module whose workflow class `Flow` runs these lines."""
    head = textwrap.dedent(FLOW).lstrip()
    first, _, rest = head.partition("\nclass")
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    return f"{first}\n{textwrap.dedent(before)}\nclass{rest}{lines}\n"
