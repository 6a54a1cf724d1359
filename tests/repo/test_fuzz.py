"""The targets of `make fuzz` hold for good bytes, bytes near them, and what once broke them."""

from __future__ import annotations

import pytest
from fuzz.targets import TARGETS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_workflows.eventlog.codec import decode
from dynamic_workflows.loaders.guest import exception_codec
from dynamic_workflows.loaders.protocol import messages
from dynamic_workflows.loaders.protocol.messages import Error
from dynamic_workflows.loaders.sdk.entrypoints import StepError

ALIKE = [b'{"$int":"0x%x"}' % (n * (2**61 - 1)) for n in range(200)]
BROKE = [
    # A StepError was made without its name and message, and could not be shown.
    ("errors", b'\x02\x00\x01g\x01\x00\x00\x00",[["null,false\xcd\xcd\xcd\xcd\xcd\xcd]]]'),
    ("errors", b"\x03\x01\x02no\x01[]"),
    # Reading these took hours, or made files be opened by the million.
    ("values", b'{"$set":[%s]}' % b",".join(ALIKE)),
    ("values", b'[{"$datetime":["2026-07-01T12:00:00+02:00","zone","Mars/Olympus",0]}]'),
    ("values", b'{"$datetime":"2000-01-01T00:00:00+00:00:00.000001"}'),
]


@pytest.mark.parametrize("name", TARGETS)
def test_good_bytes_hold(name: str) -> None:
    assert seeds(name)
    for data in seeds(name):
        TARGETS[name](data)


@pytest.mark.parametrize(("name", "data"), BROKE)
def test_what_once_broke_holds(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100)
@given(data=st.data())
def test_bytes_near_good_ones_hold(name: str, data: st.DataObject) -> None:
    good = bytearray(data.draw(st.sampled_from([b"", *seeds(name)])))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(good)))
        good[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    TARGETS[name](bytes(good))


def test_a_step_error_always_has_its_name_and_message() -> None:
    for args in (None, b"[]", b"[[1]]", b'["m","n",3]', b'["no such"]'):
        revived = exception_codec.from_wire(Error("StepError", "said", "dynamic_workflows", args))
        assert type(revived) is StepError
        assert (revived.name, revived.message) == ("StepError", "said")


def test_a_target_finds_a_reader_that_lets_something_else_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(decode._READERS, "$uuid", lambda value: {}[value])
    with pytest.raises(KeyError):
        TARGETS["values"](b'{"$uuid":"7"}')
    monkeypatch.setattr(messages, "_unpack", lambda decoders, kind, body: decoders[-1])
    with pytest.raises(KeyError):
        TARGETS["from_guest"](seeds("from_guest")[0])
