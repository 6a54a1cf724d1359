"""What an isolate says of errors, on its way to the driver: bounded, and steering no terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_tenants import real_tenant

import dynamic_workflows as dw
from dynamic_workflows.eventlog import codec
from dynamic_workflows.loaders import faults
from dynamic_workflows.loaders.plain import plain_error
from dynamic_workflows.loaders.wire import Error

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\x7f"
LIAR = f"""
import gc, os, sys
from dynamic_workflows import WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def steer(self):
        raise ValueError({ESCAPES!r}, 1)

    async def forge(self):
        wire = sys.modules["dynamic_workflows.loaders.wire"]
        channel = sys.modules["dynamic_workflows.loaders.channel"]
        error = wire.Error({ESCAPES!r}, "x" * 2_000_000, "dynamic_workflows", b"[0]")
        for batch in channel.encode([wire.pack(wire.Reply(i, error=error)) for i in range(3)]):
            view = memoryview(batch)
            while view:
                try:
                    view = view[os.write(3, view):]
                except BlockingIOError:
                    pass
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
    st.one_of(st.none(), st.binary(), st.lists(st.text()).map(codec.encode)),
    st.sampled_from(["ValueError", "CodeError", "ExceptionGroup", "UnicodeDecodeError", "OSError"]),
)
def test_whatever_error_an_isolate_sends_becomes_an_exception(
    name: str, message: str, module: str, args: bytes | None, kind: str
) -> None:
    for one in (name, kind):
        error = plain_error(Error(one, message, module, args), 100)
        raised = faults.from_wire(error)
        assert isinstance(raised, Exception)
        assert all(c.isprintable() or c in "\n\t\u200c\u200d" for c in error.message)
        assert len(error.message) <= 1_000  # each character may become an escape


def test_details_of_an_error_cannot_pose_as_its_code_or_message() -> None:
    args = codec.encode(["text", "limit.exceeded", {"code": "other", "message": 1, "self": 2}])
    raised = faults.from_wire(Error("LimitExceededError", "text", "dynamic_workflows", args))
    assert isinstance(raised, dw.LimitExceededError)
    assert (raised.code, raised.message, raised.details) == ("limit.exceeded", "text", {})
