"""Wire: the messages between a supervisor and the guest in an isolate.

A message is (kind, life, body): two integers and the msgpack of one of the structs below. `life`
names one lifetime of one instance, or one call of an entrypoint (`CALLS_FROM` and its number), or
neither (0). The supervisor numbers lifetimes and never reuses a number, so what a dead lifetime
still says is recognised and dropped. Values travel as codec text (JSON, bytes) and stay opaque
until somebody has to look inside; the supervisor checks every value before it is recorded. Each
side decodes only the kinds it may receive.

Order is part of the contract: the supervisor treats the messages of one lifetime in the order in
which the guest sent them, and a `Go` follows every `Done` that was sent before its `StepRequest` to
disk. So the guest may hand a step's result to `run` as soon as it has sent `Done`: nothing that
`run` can do about it (a next step, a call, the end) takes effect before the outcome is durable.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from dynamic_workflows.eventlog.growing_buffers import LARGE_BYTES, into_buffer

Frame: TypeAlias = tuple[int, int, bytes]

CALLS_FROM = 1 << 62
"""Added to the number of an Invoke: what its frames carry in the place of a lifetime."""


class Error(msgspec.Struct, array_like=True, gc=False):
    """An exception as it travels and as it is stored."""

    name: str
    message: str
    module: str = "builtins"
    """Where the class is defined: "builtins", "dynamic_workflows", or a tenant's module."""
    args: bytes | None = None
    """Codec text of the list of arguments, when they can be encoded."""
    fatal: bool = False
    """Never retried: NonRetryableError, bad values, misuse."""


class RecordedStep(msgspec.Struct, array_like=True, gc=False):
    """What history holds of one step, for replay."""

    kind: str  # "do" | "sleep" | "wait_for_event" | "timer" (of asyncio, by number; its end only)
    name: str
    count: int
    outcome: int  # 0: started, not finished; 1: value; 2: error; 3: cancelled by the code
    value: bytes | None = None
    error: Error | None = None
    at: str | None = None
    """The place in the tenant's source that asked for it, as "module.py:12"."""
    started: int = 0
    """When it started, and ended, as one count over both: a replay answers in the order of ends."""
    ended: int = 0


class EnvEntry(msgspec.Struct, array_like=True, gc=False):
    """One name in a tenant's `env`."""

    name: str
    kind: str  # "value" | "service" | "workflows" | "loader"
    value: bytes | None = None
    """Codec text for kind "value"; for "workflows" the default class name as UTF-8."""


class Module(msgspec.Struct, array_like=True, gc=False):
    """One module of a bundle: path, how it is to be understood, its bytes."""

    path: str
    kind: str  # "py" | "text" | "data" | "json"
    data: bytes


# --- supervisor -> guest -------------------------------------------------------------------------


class Load(msgspec.Struct, array_like=True, gc=False):
    """The first message of an isolate: the code that it will run for the rest of its life."""

    main_module: str
    modules: list[Module]
    env: list[EnvEntry]
    packages: list[str] = []
    """Installed packages that tenant code may import beside the bundle."""
    options: dict[str, Any] = {}
    """`threads` (bool), `value_bytes_max` (int), `network` (bool: a gateway answers `fetch`),
    `drop_grace_s` (float: how long code may go on after it was told to end), `limits` (the figures
    that errors of exhaustion name: see `exhausted.py`)."""


class Run(msgspec.Struct, array_like=True, gc=False):
    """Start one lifetime of an instance."""

    workflow: str
    instance_id: str
    params: bytes
    timestamp_us: int
    history: list[RecordedStep]
    steps_max: int = 10_000
    schedule: bytes | None = None
    mode: str = "run"  # or "rollback": register handlers only, run no callback
    props: bytes | None = None
    workflow_name: str | None = None
    now_us: int = 0
    """When this lifetime starts: a `sleep_until` before it that history does not hold was refused
    as past in an earlier lifetime, too; so a replay need not ask."""
    waits_max: int = 100_000
    told: int = -1
    """The last end (by its number) that an earlier lifetime was told: what `run` prints up to the
    next one was printed before. -1: there was no earlier lifetime."""


class Go(msgspec.Struct, array_like=True, gc=False):
    """The attempt is recorded: run the callback. Sent again, with the next number, for a retry."""

    token: int
    attempt: int
    config: bytes | None = None
    """JSON of the step's config as first recorded (it wins over what the code says now)."""


class StepOutcome(msgspec.Struct, array_like=True, gc=False):
    """The final outcome of a step that the guest cannot know by itself; neither: unfinished."""

    token: int
    value: bytes | None = None
    error: Error | None = None


class Cancel(msgspec.Struct, array_like=True, gc=False):
    """This attempt is over (timed out): cancel the callback; nothing more of it will be heard.

    The guest confirms by AttemptGone.
    """

    token: int
    attempt: int


class Drop(msgspec.Struct, array_like=True, gc=False):
    """End this lifetime without a word: suspend, pause, terminate, restart, delete.

    Or this call of an entrypoint: nobody waits for its answer any more. The guest confirms by Gone.
    """


class Undo(msgspec.Struct, array_like=True, gc=False):
    """Call the rollback handler of a step; the guest answers Done or Failed with this token."""

    token: int
    name: str
    count: int
    attempt: int
    step_attempt: int
    error: Error
    output: bytes | None
    config: bytes | None = None


class Invoke(msgspec.Struct, array_like=True, gc=False):
    """Call a public method of an entrypoint class (None: the default export)."""

    call: int
    entrypoint: str | None
    method: str
    args: bytes  # codec text of the list
    kwargs: bytes  # codec text of the dict
    props: bytes | None = None


class Reply(msgspec.Struct, array_like=True, gc=False):
    """The outcome of a Call (to the guest) or an Invoke (from the guest)."""

    call: int
    value: bytes | None = None
    error: Error | None = None
    is_last: bool = False
    """From the guest: Gone as well, for nothing else of the call is left."""


# --- guest -> supervisor -------------------------------------------------------------------------


class Export(msgspec.Struct, array_like=True, gc=False):
    """A class that the main module exports."""

    name: str
    kind: str  # "workflow" | "entrypoint"
    methods: list[str]


class CodeLoaded(msgspec.Struct, array_like=True, gc=False):
    """The answer to Load: what the code exports, or why it cannot be loaded."""

    exports: list[Export] = []
    error: Error | None = None
    code: str | None = None  # "code.invalid" | "code.import_failed" when error is set


class StepRequest(msgspec.Struct, array_like=True, gc=False):
    """`step.do` was called and history does not answer it."""

    token: int
    name: str
    count: int
    config: bytes
    """JSON, normalised: {"retries": {"limit", "delay_ms" | null, "backoff"}, "timeout_ms", ...}."""
    at: str | None = None
    has_rollback: bool = False
    rollback_config: bytes | None = None


class Sleep(msgspec.Struct, array_like=True, gc=False):
    """`step.sleep` (duration_ms) or `step.sleep_until` (until_us)."""

    token: int
    name: str
    count: int
    duration_ms: int | None = None
    until_us: int | None = None
    at: str | None = None


class Wait(msgspec.Struct, array_like=True, gc=False):
    """`step.wait_for_event`. Its value (in Answer and Known) is codec text of the plain dict
    {"payload": …, "timestamp_us": int, "type": text}; a sleep's value is null."""

    token: int
    name: str
    count: int
    type: str
    timeout_ms: int
    at: str | None = None


class Done(msgspec.Struct, array_like=True, gc=False):
    """The attempt returned."""

    token: int
    attempt: int
    value: bytes
    heard: int = -1
    """How many Answers of this lifetime had come by then (-1: all that were sent): `run` is told
    of this end before it is told of the others."""


class Cancelled(msgspec.Struct, array_like=True, gc=False):
    """The code cancelled a step while it awaited it: the step is over.

    `token` is 0 where the present lifetime has not asked for it. The supervisor sends a Cancel for
    an attempt that was in flight.
    """

    token: int
    kind: str
    name: str
    count: int


class RunTimerFired(msgspec.Struct, array_like=True, gc=False):
    """A timer of asyncio that `run` set, by its number, has come due before anybody cancelled it.

    As with Done: what `run` can do about it comes after this.
    """

    number: int
    at: str | None = None
    """The place in the tenant's source that set it."""
    heard: int = -1


class Awaits(msgspec.Struct, array_like=True, gc=False):
    """`run` awaits something that is no step, and nothing of its own will go on by itself.
    `is_timed`: before a timer of asyncio comes due that it has set."""

    at: str | None = None
    is_timed: bool = False


class AttemptFailed(msgspec.Struct, array_like=True, gc=False):
    """The attempt raised. `delay_ms` is what a delay function answered, before backoff."""

    token: int
    attempt: int
    error: Error
    delay_ms: int | None = None
    delay_error: Error | None = None


class End(msgspec.Struct, array_like=True, gc=False):
    """`run` returned (value) or raised (error). In mode "rollback": every handler is registered."""

    value: bytes | None = None
    error: Error | None = None


class Idle(msgspec.Struct, array_like=True, gc=False):
    """Everything in this lifetime waits for an Answer or a Go, after `seen` messages for it."""

    seen: int


class Mismatch(msgspec.Struct, array_like=True, gc=False):
    """The replay has settled and did not ask for a finished step that history holds."""

    recorded_kind: str
    recorded_name: str
    recorded_count: int
    recorded_at: str | None
    asked_kind: str | None
    asked_name: str | None
    asked_count: int
    asked_at: str | None
    is_awaited: bool = False
    """It was asked for, and awaited though history holds that the code cancelled it."""


class CallRequest(msgspec.Struct, array_like=True, gc=False):
    """Call a binding of `env` (target = its name), or the gateway (target "", method "fetch")."""

    call: int
    target: str
    method: str
    args: bytes
    kwargs: bytes


class Ended(msgspec.Struct, array_like=True, gc=False):
    """Nothing of this lifetime or call is left: whatever was started for it has ended."""


class AttemptEnded(msgspec.Struct, array_like=True, gc=False):
    """Nothing of an attempt that was cancelled is left."""

    token: int
    attempt: int


class CancellationIgnored(msgspec.Struct, array_like=True, gc=False):
    """What was told to end goes on, though it was cancelled twice: a lifetime, a call, or (with a
    token) an attempt."""

    token: int | None = None
    attempt: int = 0
    at: str | None = None
    """The place in the tenant's source that it waits at, if that can be told."""


class Log(msgspec.Struct, array_like=True, gc=False):
    """Lines that tenant code printed or logged."""

    level: str
    text: str
    step: str | None = None
    attempt: int = 0
    dropped: int = 0
    is_replay: bool = False
    """`run` has most likely said it before, in an earlier lifetime."""


TO_GUEST: dict[int, type[msgspec.Struct]] = {
    1: Load, 2: Run, 3: Go, 4: StepOutcome, 5: Cancel, 6: Drop, 7: Undo, 8: Invoke, 9: Reply,
}  # fmt: skip
FROM_GUEST: dict[int, type[msgspec.Struct]] = {
    9: Reply, 16: CodeLoaded, 17: StepRequest, 18: Sleep, 19: Wait, 20: Done,
    21: AttemptFailed, 22: End, 23: Idle, 24: Mismatch, 25: CallRequest, 26: Log, 27: Ended,
    28: AttemptEnded, 29: CancellationIgnored, 30: Cancelled, 31: RunTimerFired, 32: Awaits,
}  # fmt: skip

_KINDS: dict[type[msgspec.Struct], int] = {
    struct: kind for table in (TO_GUEST, FROM_GUEST) for kind, struct in table.items()
}
_ENCODER = msgspec.msgpack.Encoder()
_encode_large = into_buffer(_ENCODER)
_BYTES_FIELDS = {
    kind: [name for name, hint in vars(kind).get("__annotations__", {}).items() if "bytes" in hint]
    for kind in _KINDS
}
"""The fields of a message that may be large."""
_TO_GUEST_DECODERS = {k: msgspec.msgpack.Decoder(s) for k, s in TO_GUEST.items()}
_FROM_GUEST_DECODERS = {k: msgspec.msgpack.Decoder(s) for k, s in FROM_GUEST.items()}


class ProtocolViolation(Exception):
    """The other side sent what no correct guest or supervisor sends; its isolate has to go."""

    life = 0
    """The lifetime that the message was about, where whoever raises knows it."""


def pack(message: msgspec.Struct, *, life: int = 0) -> Frame:
    """The message as it goes over the wire."""
    kind = type(message)
    for name in _BYTES_FIELDS[kind]:
        held = getattr(message, name)
        if held is not None and len(held) > LARGE_BYTES:
            return _KINDS[kind], life, _encode_large(message)
    return _KINDS[kind], life, _ENCODER.encode(message)


def unpack_from_guest(kind: int, body: bytes) -> msgspec.Struct:
    """Decode what an isolate sent, or raise ProtocolViolation."""
    return _unpack(_FROM_GUEST_DECODERS, kind, body)


def unpack_to_guest(kind: int, body: bytes) -> msgspec.Struct:
    """Decode what the supervisor sent, or raise ProtocolViolation."""
    return _unpack(_TO_GUEST_DECODERS, kind, body)


def _unpack(
    decoders: dict[int, msgspec.msgpack.Decoder[msgspec.Struct]], kind: int, body: bytes
) -> msgspec.Struct:
    decoder = decoders.get(kind)
    if decoder is None:
        raise ProtocolViolation(f"unknown message kind {kind}")
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"message of kind {kind} does not decode: {error}") from None
