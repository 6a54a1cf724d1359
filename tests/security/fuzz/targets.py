"""Targets: what reads bytes from the other side of a wall, each as a function of any bytes.

A target returns, or it has found something. It does not know who makes up the bytes: `run.py` lets
atheris do it, `test_fuzz.py` hypothesis and the seeds, in every run of the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from core_world import World, config

from dynamic_workflows.actors.instances.decisions import Decision
from dynamic_workflows.eventlog.codec import values as codec
from dynamic_workflows.eventlog.errors import (
    InvalidError,
    UnserialisableValueError,
    ValueTooLargeError,
)
from dynamic_workflows.loaders.guest import exception_codec
from dynamic_workflows.loaders.guest.sanitize import plain, plain_error
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.channel import BATCH_BYTES_MAX, FrameReader, encode
from dynamic_workflows.loaders.protocol.messages import Error, Frame, ProtocolViolation
from dynamic_workflows.loaders.sdk import http

_MESSAGE_BYTES_MAX = 4 << 20


class Source:
    """Choices made from bytes; when they run out every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_empty(self) -> bool:
        return self._place >= len(self._data)

    def bytes(self, count: int) -> bytes:
        self._place += count
        return self._data[self._place - count : self._place]

    def number(self, below: int) -> int:
        return int.from_bytes(self.bytes(1)) % below

    def choice(self, options: list[Any]) -> Any:
        return options[self.number(len(options))]

    def text(self) -> str:
        return self.bytes(self.number(12)).decode("utf-8", "replace")

    def integer(self) -> int:
        """Mostly small, sometimes as large as the wire carries."""
        if self.number(8):
            return self.number(6) - 1
        return struct.unpack("<q", self.bytes(8).ljust(8, b"\xff"))[0]  # type: ignore[no-any-return]


def batches(data: bytes) -> None:
    """The reader of the channel: the same messages, or a violation, however the bytes are cut."""
    source = Source(data)
    step = 1 + source.number(64)
    stream = data[1:]
    whole = _read([stream])
    assert whole == _read([stream[n : n + step] for n in range(0, len(stream), step)])
    for kind, life, body in whole or []:
        assert type(kind) is type(life) is int
        assert type(body) is bytes
    if whole and all(kind != 0 and -(2**63) <= kind < 2**64 for kind, _, _ in whole):
        assert _read([b"".join(encode(whole))]) == whole


def _read(pieces: list[bytes]) -> list[Frame] | None:
    """The messages, or None for a violation."""
    reader = FrameReader(message_bytes_max=_MESSAGE_BYTES_MAX)
    frames: list[Frame] = []
    for piece in pieces:
        reader.feed(piece)
        try:
            got, has_more = reader.take(1 << 60)
        except ProtocolViolation:
            return None
        assert not has_more
        assert reader.held_bytes <= _MESSAGE_BYTES_MAX + BATCH_BYTES_MAX + len(piece)
        frames += got
    return frames


def from_guest(data: bytes) -> None:
    """A message of a guest, up to what operators and the core are given of it."""
    message = _unpacked(messages.unpack_from_guest, list(messages.FROM_GUEST), data)
    if isinstance(message, messages.Log):
        _check_text(plain(message.text))
    error = getattr(message, "error", None)
    if isinstance(error, Error):
        _check_error(error)


def to_guest(data: bytes) -> None:
    """A message of a supervisor."""
    message = _unpacked(messages.unpack_to_guest, list(messages.TO_GUEST), data)
    if isinstance(message, messages.Reply) and message.error is not None:
        _check_error(message.error)


def _unpacked(unpack: Callable[[int, bytes], Any], kinds: list[int], data: bytes) -> Any:
    kind = kinds[data[0] % len(kinds)] if data else 0
    try:
        message = unpack(kind, data[1:])
    except ProtocolViolation:
        return None
    kind_again, _, body = messages.pack(message)
    assert kind_again == kind
    assert unpack(kind, body) == message
    return message


def errors(data: bytes) -> None:
    """An error of a guest, as it is revived: always an exception that can be raised."""
    source = Source(data)
    name = source.choice(["ValueError", "OSError", "ExceptionGroup", "StepError", source.text()])
    module = source.choice(["builtins", "dynamic_workflows", "mine", ""])
    message = source.text()
    args = source.bytes(len(data)) if source.number(4) else None
    _check_error(Error(name, message, module, args))


def _check_error(error: Error) -> None:
    shown = plain_error(error, 1_000)
    _check_text(shown.message)
    _check_text(shown.name)
    for one in (error, shown):
        revived = exception_codec.from_wire(one)
        assert isinstance(revived, Exception)
        str(revived), repr(revived)
        again = exception_codec.to_wire(revived)
        assert type(exception_codec.from_wire(again)) is type(revived)


def _check_text(text: str) -> None:
    assert all(letter.isprintable() or letter in "\n\t" for letter in text), ascii(text)


def values(data: bytes) -> None:
    """The text of a value: what is taken comes back as it was, and the check says what reading
    says."""
    try:
        codec.check(data)
        is_value = True
    except (UnserialisableValueError, ValueTooLargeError):
        is_value = False
    try:
        value = codec.decode(data)
    except UnserialisableValueError:
        assert not is_value
        return
    assert is_value
    try:
        text = codec.encode(value)
    except (UnserialisableValueError, ValueTooLargeError):
        return  # nested by tags that cost more depth in writing than in reading
    assert codec.encode(codec.decode(text)) == text
    try:
        assert http.to_plain(http.from_plain(value)) is not None or value is None
    except InvalidError:
        pass


class Quiet(World):
    """A core whose guests say what the bytes say."""

    def take(self, decision: Decision) -> Any:
        for row, real in decision.secrets:
            self.secrets[row.seq] = real
        self.rows += decision.rows
        self.check()
        return decision.answer


def core(data: bytes) -> None:
    """Whatever a guest says in whatever order: taken, or refused with nothing changed."""
    source = Source(data)
    world = Quiet(running_max=2, steps_max=6)
    world.create("a")
    world.create("b")
    while not source.is_empty:
        world.start_runnable()
        lives = list(world.core.lifetimes.by_number)
        if source.number(12) == 0 or not lives:
            world.now += source.choice([1, 1_000, 5_000_000, 86_400_000_000])
            world.take(world.core.due(world.now))
            continue
        life = source.choice([*lives, 999])
        message = _message(source, world)
        before = world.core.last_seq
        try:
            _check_values(message)
            world.take(world.core.on_message(life, message, now_us=world.now))
        except ProtocolViolation as violation:
            assert world.core.last_seq == before
            world.check()
            lost = [one for one in lives if one == life]
            world.take(
                world.core.lives_lost(
                    lost, reason=str(violation), own=True, culprit=life, now_us=world.now
                )
            )


def _check_values(message: msgspec.Struct) -> None:
    """What the shell checks before the core sees it."""
    value = getattr(message, "value", None)
    if value is not None:
        try:
            codec.check(value)
        except (UnserialisableValueError, ValueTooLargeError) as error:
            raise ProtocolViolation(str(error)) from None


def _message(source: Source, world: World) -> Any:
    token, attempt = source.integer(), source.integer()
    kind = source.number(8)
    name, count = source.choice(["x", "y", source.text()]), source.integer()
    error = Error(source.choice(["E", "NonRetryableError"]), source.text(), fatal=kind == 1)
    value = source.choice([b"1", b'{"$tuple":[]}', source.bytes(4)])
    if kind == 0:
        return messages.Done(token, attempt, value)
    if kind == 1:
        broken = source.choice([None, None, error])
        return messages.AttemptFailed(
            token, attempt, error, source.choice([None, 0, token]), broken
        )
    if kind == 2:
        return messages.End(*source.choice([(value,), (None, error), ()]))
    if kind == 3:
        return messages.Idle(source.integer())
    if kind == 4:
        return messages.Mismatch(
            name, name, count, name, source.choice([None, "do"]), name, count, ""
        )
    if kind == 5:
        until_us = source.choice([None, world.now + token, token])
        return messages.Sleep(token, name, count, source.choice([None, attempt]), until_us)
    if kind == 6:
        return messages.Wait(
            token, name, count, source.choice(["go", source.text()]), attempt, name
        )
    text = source.choice([config(limit=2), config(lost="fail"), source.bytes(8)])
    return messages.StepRequest(token, name, count, text, None, bool(source.number(2)), None)


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    "batches": batches,
    "from_guest": from_guest,
    "to_guest": to_guest,
    "errors": errors,
    "values": values,
    "core": core,
}


def seeds(name: str) -> list[bytes]:
    """Good bytes to begin with."""
    error = Error("ValueError", "no", "builtins", b'["no"]')
    said: list[Any] = [
        messages.Reply(1, b"null"),
        messages.CodeLoaded([messages.Export("A", "workflow", ["run"])]),
        messages.StepRequest(1, "x", 1, config()), messages.Sleep(1, "x", 1, 5),
        messages.Wait(1, "x", 1, "go", 5),
        messages.Done(1, 1, b'{"$tuple":[1]}'), messages.AttemptFailed(1, 1, error),
        messages.End(None, error),
        messages.Idle(3), messages.Mismatch("do", "x", 1, None, None, None, 0, None),
        messages.CallRequest(1, "KV", "get", b"[]", b"{}"), messages.Log("info", "hello \x1b[31m"),
    ]  # fmt: skip
    told: list[Any] = [
        messages.Load("a.py", [messages.Module("a.py", "py", b"")],
                      [messages.EnvEntry("X", "value", b"1")]),
        messages.Run("A", "i", b"null", 1, [messages.RecordedStep("do", "x", 1, 1, b"1")]),
        messages.Go(1, 1),
        messages.StepOutcome(1, b"1"), messages.Cancel(1, 1), messages.Drop(),
        messages.Undo(1, "x", 1, 1, 1, error, b"1"),
        messages.Invoke(1, None, "fetch", b"[]", b"{}"),
        messages.Reply(1, None, error),
    ]  # fmt: skip
    match name:
        case "batches":
            frames = [messages.pack(message, life=1) for message in said]
            return [b"\x05" + b"".join(encode(frames)), b"\x00" + b"".join(encode(frames[:1]))]
        case "from_guest":
            return [_seed(list(messages.FROM_GUEST), message) for message in said]
        case "to_guest":
            return [_seed(list(messages.TO_GUEST), message) for message in told]
        case "errors":
            return [b"\0\0\x02hi\x01[1,2]", b'\x02\0\x01g\x01["m",[["E","m","",null,false]]]']
        case "values":
            return [codec.encode(value) for value in _VALUES]
        case _:
            return [b"\x01\x00" + bytes([n, 1, 2, 0, 0, 1, 0, 0]) * 8 for n in range(8)]


def _seed(kinds: list[int], message: Any) -> bytes:
    kind, _, body = messages.pack(message)
    return bytes([kinds.index(kind)]) + body


_VALUES: list[Any] = [
    None, 1.5, [1, "é"], {"a": {"$b": 1}}, (1, (2,)), {1, 2}, frozenset({"a"}), 2**70, b"bytes",
    float("nan"), {1: 2, (1, 2): 3},
    {"http": "response", "status": 200, "headers": {"a": "b"}, "body": b"x"},
    {"http": "request", "method": "GET", "url": "http://a/", "headers": {}, "body": b""},
    datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.50"),
]  # fmt: skip
