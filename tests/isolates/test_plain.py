"""What an isolate says of errors, on its way to the driver: bounded, and steering no terminal."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_tenants import real_tenant

import dynamic_workflows as dw
from dynamic_workflows.cli.output import terminal_text
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.guest import exception_codec
from dynamic_workflows.loaders.guest.sanitize import plain_error
from dynamic_workflows.loaders.isolates import isolate_process
from dynamic_workflows.loaders.protocol.messages import Error

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f"
LIAR = f"""
import asyncio, os, sys
from dynamic_workflows import WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def steer(self):
        raise ValueError({ESCAPES!r}, 1)

    async def forge(self):
        wire = sys.modules["dynamic_workflows.loaders.protocol.messages"]
        channel = sys.modules["dynamic_workflows.loaders.protocol.channel"]
        error = wire.Error({ESCAPES!r}, "x" * 2_000_000, "dynamic_workflows", b"[0]")
        answer = wire.pack(wire.Reply(2, error=error), life=wire.CALLS_FROM + 2)
        for batch in channel.encode([answer]):
            view = memoryview(batch)
            while view:
                try:
                    view = view[os.write(3, view):]
                except BlockingIOError:
                    pass
        await asyncio.sleep(3600)  # an answer of its own would be one too many
"""


async def test_errors_that_an_isolate_raises_or_forges_are_harmless_in_the_driver() -> None:
    async with real_tenant(dw.WorkerCode("index.py", {"index.py": LIAR})) as tenant:
        with pytest.raises(Exception, match="title") as caught:
            await tenant.entrypoint().steer()
        assert str(caught.value).isprintable()
        with pytest.raises(dw.StepError) as forged:
            await tenant.entrypoint().forge()
        assert str(forged.value).isprintable()
        assert len(str(forged.value)) < 70_000


@given(
    st.text(),
    st.text(),
    st.sampled_from(["builtins", "dynamic_workflows", "", "x"]),
    st.one_of(st.none(), st.binary(), st.lists(st.text()).map(values.encode)),
    st.sampled_from(["ValueError", "CodeError", "ExceptionGroup", "UnicodeDecodeError", "OSError"]),
)
def test_whatever_error_an_isolate_sends_becomes_an_exception(
    name: str, message: str, module: str, args: bytes | None, kind: str
) -> None:
    for one in (name, kind):
        error = plain_error(Error(one, message, module, args), 100)
        raised = exception_codec.from_wire(error)
        assert isinstance(raised, Exception)
        assert all(c.isprintable() or c in "\n\t\u200c\u200d" for c in error.message)
        assert len(error.message) <= 1_000  # each character may become an escape


def test_details_of_an_error_cannot_pose_as_its_code_or_message() -> None:
    args = values.encode(["text", "limit.exceeded", {"code": "other", "message": 1, "self": 2}])
    raised = exception_codec.from_wire(
        Error("LimitExceededError", "text", "dynamic_workflows", args)
    )
    assert isinstance(raised, dw.LimitExceededError)
    assert (raised.code, raised.message, raised.details) == ("limit.exceeded", "text", {})


HALF = """
import asyncio, os
from dynamic_workflows import WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def half(self):
        os.write(3, b"\\xff\\xff\\x0f\\0\\x90")
        await asyncio.sleep(3600)

    async def ping(self):
        return "pong"
"""


async def test_an_isolate_that_begins_a_message_and_never_ends_it_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(isolate_process, "_MESSAGE_S", 0.2)
    code = dw.WorkerCode("index.py", {"index.py": HALF})
    async with real_tenant(code, turn_wall_seconds=0.1) as tenant:
        with pytest.raises(dw.CodeError, match="a message that does not end"):
            await tenant.entrypoint().half()
        assert await tenant.entrypoint().ping() == "pong"


def test_the_failure_of_an_instance_shows_nothing_that_steers_a_terminal() -> None:
    error = dw.WorkflowFailedError(f"bad: {ESCAPES}\nmore", name="ValueError")
    assert error.message == f"bad: {ESCAPES}\nmore"
    assert str(error).startswith(r"bad: \x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f")
    assert str(error).endswith("\nmore")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_no_escapes_and_a_pipe_gets_every_byte(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    shown = terminal_text(f"id,text\r\n1,{ESCAPES}\r\n")
    if is_terminal:
        assert all(c.isprintable() or c == "\n" for c in shown)
    else:
        assert shown == f"id,text\r\n1,{ESCAPES}\r\n"
