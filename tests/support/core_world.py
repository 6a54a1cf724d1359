"""A world for the core: a list as log, a clock by hand, and guests that run scripted programs.

A program is `async def run(step, params)`; `step.do/sleep/wait` and `gather` are awaited. The guest
follows the rules of the wire: answers from history, holds new requests back until its replay has
settled, hands a step's value on when it has sent Done, says Idle when everything waits.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import msgspec

from dynamic_workflows.actors.core.tenant_core import TenantCore
from dynamic_workflows.actors.instances.decisions import (
    CoreConfig,
    CreateItem,
    Decision,
    DropLife,
    Effect,
    Key,
    ReadEvents,
    Send,
)
from dynamic_workflows.eventlog.events import Row, unfold
from dynamic_workflows.loaders.protocol.messages import (
    AttemptFailed,
    Cancel,
    Done,
    End,
    Error,
    Go,
    Idle,
    Mismatch,
    Run,
    Sleep,
    StepOutcome,
    StepRequest,
    Undo,
    Wait,
)

S = 1_000_000
START = 1_767_225_600 * S
WORKFLOW = "Job"


class StepFailed(Exception):
    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


class Fatal(Exception):
    """A step's callback raises it to say that it must not be retried."""


class Ask:
    """What a program awaits: a request to the core, or several branches."""

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __await__(self) -> Generator[Ask, Any, Any]:
        return (yield self)


def config(
    limit: int = 0,
    delay_ms: float | None = 1_000,
    backoff: str = "constant",
    timeout_ms: float = 600_000,
    **more: Any,
) -> bytes:
    retries = {"limit": limit, "delay_ms": delay_ms, "backoff": backoff}
    return json.dumps({"retries": retries, "timeout_ms": timeout_ms, **more}).encode()


class StepApi:
    """`step` of a program; counts occurrences like the real one."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def _count(self, kind: str, name: str) -> int:
        self._counts[kind, name] = self._counts.get((kind, name), 0) + 1
        return self._counts[kind, name]

    def do(
        self,
        name: str,
        callback: Callable[[int], Any] = lambda attempt: None,
        config: bytes = config(),
        undo: Callable[[Undo], Any] | None = None,
        undo_config: bytes | None = None,
    ) -> Ask:
        return Ask(
            kind="do",
            name=name,
            count=self._count("do", name),
            callback=callback,
            config=config,
            undo=undo,
            undo_config=undo_config,
        )

    def sleep(self, name: str, ms: int) -> Ask:
        return Ask(kind="sleep", name=name, count=self._count("sleep", name), ms=ms)

    def wait(self, name: str, type: str, timeout_ms: int = 86_400_000) -> Ask:
        count = self._count("wait_for_event", name)
        return Ask(kind="wait_for_event", name=name, count=count, type=type, ms=timeout_ms)


def gather(*branches: Coroutine[Any, Any, Any]) -> Ask:
    return Ask(kind="gather", branches=branches)


class Task:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], parent: Task | None, slot: int) -> None:
        self.coroutine = coroutine
        self.parent = parent
        self.slot = slot
        self.results: list[Any] = []
        self.missing = 0


Program = Callable[[StepApi, Any], Coroutine[Any, Any, Any]]


class Guest:
    """One lifetime."""

    def __init__(self, world: World, life: int) -> None:
        self.world = world
        self.life = life
        self.outbox: deque[msgspec.Struct] = deque()
        self.seen = 0
        self.running: list[tuple[int, int, Ask]] = []
        self._asks: dict[int, tuple[Ask, Task]] = {}
        self._handlers: dict[tuple[str, int], Callable[[Undo], Any]] = {}
        self._held: list[msgspec.Struct] = []
        self._replaying = True
        self._token = 0
        self._ended = False
        self._mode = "run"
        self._ready: deque[tuple[Task, bool, Any]] = deque()

    def receive(self, message: msgspec.Struct) -> None:
        self.seen += 1
        match message:
            case Run():
                self._start(message)
            case Go():
                ask = self._asks[message.token][0]
                self.running.append((message.token, message.attempt, ask))
                if not self.world.slow:
                    self.finish_callback()
            case StepOutcome():
                ask, task = self._asks.pop(message.token)
                self._resolve(task, message.value, message.error)
            case Cancel():
                self.running = [
                    one for one in self.running if one[:2] != (message.token, message.attempt)
                ]
            case Undo():
                self._undo(message)
        self._burst()

    def finish_callback(self) -> None:
        """Let the callback that has run longest end."""
        token, attempt, ask = self.running.pop(0)
        try:
            value = ask.callback(attempt)
        except Fatal as error:
            self._send(AttemptFailed(token, attempt, Error("Fatal", str(error), fatal=True)))
        except Exception as error:
            self._send(AttemptFailed(token, attempt, Error(type(error).__name__, str(error))))
        else:
            text = json.dumps(value).encode()
            self._send(Done(token, attempt, text))
            self._resolve(self._asks.pop(token)[1], text, None)
        self._burst()

    def _undo(self, message: Undo) -> None:
        handler = self._handlers.get((message.name, message.count))
        try:
            if handler is None:
                raise Fatal("RollbackMissing")
            handler(message)
        except Fatal as error:
            failed = Error("RollbackMissing", str(error), fatal=True)
            self._send(AttemptFailed(message.token, message.attempt, failed))
        except Exception as error:
            failed = Error(type(error).__name__, str(error))
            self._send(AttemptFailed(message.token, message.attempt, failed))
        else:
            self._send(Done(message.token, message.attempt, b"null"))

    def _start(self, message: Run) -> None:
        self._mode = message.mode
        self._known = {(k.kind, k.name, k.count): k for k in message.history}
        self._unasked = {key for key, known in self._known.items() if known.outcome}
        program = self.world.programs[message.workflow]
        coroutine = program(StepApi(), json.loads(message.params))
        self._ready.append((Task(coroutine, None, 0), True, None))

    def _burst(self) -> None:
        while self._ready:
            self._advance(*self._ready.popleft())
        if self._replaying:
            self._settle()
        if not self._ended and not self.running and self._mode == "run":
            self.outbox.append(Idle(self.seen))

    def _settle(self) -> None:
        """The replay has settled: what is new may be sent, if all of history was asked for."""
        self._replaying = False
        held, self._held = self._held, []
        ended = [message for message in held if isinstance(message, End)]
        if self._mode == "rollback":
            self.outbox.append(End(b"null"))
        elif self._unasked and not (ended and ended[0].error is not None):
            kind, name, count = sorted(self._unasked)[0]
            self.outbox.append(
                Mismatch(kind, name, count, None, "do", getattr(held[0], "name", None), 1, None)
            )
            self._ended = True
        else:
            self.outbox.extend(held)

    def _send(self, message: msgspec.Struct) -> None:
        (self._held if self._replaying else self.outbox).append(message)

    def _advance(self, task: Task, is_value: bool, value: Any) -> None:
        try:
            ask = task.coroutine.send(value) if is_value else task.coroutine.throw(value)
        except StopIteration as stop:
            self._returned(task, True, stop.value)
        except Exception as error:
            self._returned(task, False, error)
        else:
            self._ask(ask, task)

    def _returned(self, task: Task, is_value: bool, value: Any) -> None:
        parent = task.parent
        if parent is None:
            self._ended = True
            if is_value:
                self._send(End(json.dumps(value).encode()))
            elif isinstance(value, StepFailed):
                self._send(End(None, value.error))
            else:
                self._send(End(None, Error(type(value).__name__, str(value))))
        else:
            parent.results[task.slot] = value
            parent.missing -= 1
            if parent.missing == 0:
                errors = [one for one in parent.results if isinstance(one, Exception)]
                self._ready.append((parent, not errors, errors[0] if errors else parent.results))

    def _ask(self, ask: Ask, task: Task) -> None:
        if ask.kind == "gather":
            task.results = [None] * len(ask.branches)
            task.missing = len(ask.branches)
            for slot, branch in enumerate(ask.branches):
                self._ready.append((Task(branch, task, slot), True, None))
            return
        if ask.kind == "do" and ask.undo is not None:
            self._handlers[ask.name, ask.count] = ask.undo
        known = self._known.get((ask.kind, ask.name, ask.count))
        if known is not None and known.outcome:
            self._unasked.discard((ask.kind, ask.name, ask.count))
            self._resolve(task, known.value, known.error)
            return
        if self._mode == "rollback":
            self._resolve(task, b"null", None)
            return
        self._token += 1
        self._asks[self._token] = ask, task
        self._send(_request(self._token, ask))

    def _resolve(self, task: Task, value: bytes | None, error: Error | None) -> None:
        if error is not None:
            self._ready.append((task, False, StepFailed(error)))
        else:
            self._ready.append((task, True, None if value is None else json.loads(value)))


def _request(token: int, ask: Ask) -> msgspec.Struct:
    if ask.kind == "do":
        has_undo = ask.undo is not None
        return StepRequest(
            token, ask.name, ask.count, ask.config, "job.py:1", has_undo, ask.undo_config
        )
    if ask.kind == "sleep":
        return Sleep(token, ask.name, ask.count, ask.ms)
    return Wait(token, ask.name, ask.count, ask.type, ask.ms)


class World:
    """A tenant's core with everything around it in one thread; nothing moves but by its methods."""

    def __init__(self, program: Program | None = None, **settings: Any) -> None:
        self.settings = CoreConfig(**{"creates_per_second_max": 1e9, **settings})
        self.now = START
        self.rows: list[Row] = []
        self.effects: list[Effect] = []
        self.programs: dict[str, Program] = {}
        if program is not None:
            self.programs[WORKFLOW] = program
        self.slow = False
        """Callbacks run until `finish` is called."""
        self.checks = True
        self.seed = 0
        self.core = self._core()
        self.reads: list[ReadEvents] = []
        """What the core wants to be read."""
        self.guests: dict[int, Guest] = {}
        self.secrets: dict[int, bytes] = {}
        self.crash_at_every_step = False

    def _core(self) -> TenantCore:
        return TenantCore("acme", self.settings)

    # --- inputs ----------------------------------------------------------------------------------

    def take(self, decision: Decision) -> Any:
        """Append and carry out what the core decided."""
        for row, real in decision.secrets:
            self.secrets[row.seq] = real
        for row in decision.rows:
            last = self.rows[-1] if self.rows else None
            assert row.seq == (1 if last is None else unfold(last)[-1].seq + 1)
            self.rows.append(row)
        for effect in decision.effects:
            self.effects.append(effect)
            match effect:
                case Send(life, message):
                    if isinstance(message, Run):
                        self.guests[life] = Guest(self, life)
                    self.guests[life].receive(message)
                case DropLife(life):
                    self.guests.pop(life, None)
                case ReadEvents():
                    self.reads.append(effect)
        if self.checks:
            self.check()
        return decision.answer

    def check(self) -> None:
        assert self.core.audit() == []
        assert self.core.last_seq == (unfold(self.rows[-1])[-1].seq if self.rows else 0)

    def create(self, instance_id: str = "i", params: Any = None, **more: Any) -> Key:
        workflow = more.pop("workflow", WORKFLOW)
        strict = more.pop("strict", True)
        item = CreateItem(workflow, instance_id, json.dumps(params).encode(), "h1", **more)
        self.take(self.core.create([item], strict=strict, now_us=self.now))
        return workflow, instance_id

    def command(self, name: str, key: Key, *args: Any, **more: Any) -> Any:
        self.load(key)
        return self.take(getattr(self.core, name)(key, *args, **more, now_us=self.now))

    def send_event(self, key: Key, type: str, payload: Any = None) -> None:
        self.command("send_event", key, type, json.dumps(payload).encode())

    def load(self, key: Key) -> None:
        if self.core.exists(key) and not self.core.is_loaded(key):
            self.core.load(key, self.history(key))

    def history(self, key: Key) -> list[Row]:
        """The rows of an instance since its last deletion, unfolded, blobs resolved."""
        rows: list[Row] = []
        for row in self.rows:
            if (row.workflow, row.instance_id) == key:
                if row.seq in self.secrets:
                    row = msgspec.structs.replace(row, payload=self.secrets[row.seq])
                rows += unfold(row)
                if row.type == "workflow_deleted":
                    rows = []
        return rows

    # --- movement --------------------------------------------------------------------------------

    def start_runnable(self) -> bool:
        started = False
        for key in self.core.runnable():
            self.load(key)
            started |= self.take(self.core.start(key, now_us=self.now)) is not None
        return started

    def deliver(self, life: int | None = None) -> bool:
        """One message of a guest to the core; of the first that has one unless told."""
        for guest in list(self.guests.values()) if life is None else [self.guests[life]]:
            if guest.outbox:
                message = guest.outbox.popleft()
                self.take(self.core.on_message(guest.life, message, now_us=self.now))
                return True
        return False

    def read(self) -> bool:
        """Answer the oldest reading of kept events."""
        if not self.reads:
            return False
        wanted = self.reads.pop(0)
        rows = {row.seq: row for row in self.rows}
        found = {seq: json.dumps(payload(rows[seq])["payload"]).encode() for seq in wanted.seqs}
        self.take(self.core.events_read(wanted.key, wanted.seqs, found, now_us=self.now))
        return True

    def pump(self) -> None:
        """Until nothing moves without time."""
        moved = True
        while moved:
            moved = self.start_runnable() or self.deliver() or self.read()
            due_us = self.core.next_due_us()
            if due_us is not None and due_us <= self.now:
                self.take(self.core.due(self.now))
                moved = True

    def finish(self, life: int | None = None) -> None:
        """One slow callback ends."""
        for guest in list(self.guests.values()) if life is None else [self.guests[life]]:
            if guest.running:
                guest.finish_callback()
                return
        raise AssertionError("no callback runs")

    def advance(self, seconds: float) -> None:
        """Go on in time, through everything that is due on the way."""
        until = self.now + round(seconds * S)
        self.pump()
        while (due_us := self.core.next_due_us()) is not None and due_us <= until:
            self.now = max(self.now, due_us)
            self.pump()
        self.now = until
        self.pump()

    def advance_to_next(self) -> bool:
        due_us = self.core.next_due_us()
        if due_us is None:
            return False
        self.now = max(self.now, due_us)
        self.take(self.core.due(self.now))
        return True

    def crash(self, *, unfolded: bool = False) -> None:
        """Lose everything but the log, and open again."""
        self.guests.clear()
        self.reads.clear()
        mocks = self.core.mocks
        self.core = self.replayed(unfolded=unfolded)
        self.core.mocks.take_over(mocks)
        self.core.crash_at_every_step = self.crash_at_every_step
        self.take(self.core.recover(self.now))

    def replayed(self, *, unfolded: bool = False) -> TenantCore:
        """A fresh core that has taken in the log."""
        core = self._core()
        for row in self.rows:
            copy = msgspec.structs.replace(row)
            if row.seq in self.secrets:
                copy.blob = "blob"
            for one in unfold(copy) if unfolded else [copy]:
                core.apply(one)
        return core

    # --- looking ---------------------------------------------------------------------------------

    def status(self, key: Key) -> str:
        data = self.core.status(key)
        if data is None:
            self.load(key)
            data = self.core.status(key)
        assert data is not None
        return data.status

    def output(self, key: Key) -> Any:
        self.load(key)
        data = self.core.status(key)
        assert data is not None
        assert data.output is not None, f"{data}"
        return json.loads(data.output)

    def error(self, key: Key) -> Error:
        self.load(key)
        data = self.core.status(key)
        assert data is not None
        assert data.error is not None, f"{data}"
        return data.error

    def types(self, key: Key, *, run: int | None = None) -> list[str]:
        """The types of the instance's public rows, without the prefix of the workflow's own."""
        rows = [row for row in self.history(key) if run is None or row.run == run]
        return [row.type for row in rows]

    def sent(self, kind: type[msgspec.Struct]) -> list[Any]:
        """Every message of this type that went to a lifetime."""
        messages = [effect.message for effect in self.effects if isinstance(effect, Send)]
        return [message for message in messages if isinstance(message, kind)]

    def life(self, key: Key) -> int | None:
        for life, guest in self.guests.items():
            known = self.core.lifetimes.by_number.get(guest.life)
            if known is not None and known.entry.key == key:
                return life
        return None


def payload(row: Row) -> Any:
    return None if row.payload is None else json.loads(row.payload)
