"""Codec: values as JSON text and back, with the same types.

Plain values look plain, so that SQL reads into them: None, bool, int (64 bits), float, str, list,
and dicts whose keys are text. Everything else is an object with one key that begins with `$` and
names the type: `{"$decimal": "1.50"}`, `{"$tuple": [1, 2]}`. A user's dict that has a key beginning
with `$`, or a key that is no text, is written as `{"$dict": [[key, value], …]}`; so in what
`encode` writes, a `$` at the start of a key is always ours: nobody's data can pass for a tag.

Exact types only. A subclass would come back as its base, so it is refused, with the place and the
type; dataclasses and pydantic models become dicts of their fields, unless `takes_objects` is false.
Of steps (`loaders/values/typed_values.py`), objects are written as their fields, or as a value, and
where the class cannot be told from the place, with a mark:
`{"name": "rex", "$object": "pets:Dog"}`,
`{"$value": "/srv/x", "$object": "pathlib:PosixPath"}`. Read here, without their classes, they are
those fields, or that value. Sets are written in the order of their elements'
texts: equal values give equal texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..growing_buffers import LARGE_BYTES, into_buffer
from .decode import OBJECT, invalid, revive
from .encode import DEPTH_MAX as DEPTH_MAX
from .encode import TAGGED_NODES_MAX, count_nodes, tagged, too_deep, too_large

VALUE_BYTES_MAX = 64 * 1024 * 1024
"""The most bytes that a value may have, unless the caller says otherwise: of its text, in which
`bytes` count as they are and not as base64."""
TEXT_BYTES_MAX = VALUE_BYTES_MAX * 4 // 3 + 1024
"""The most bytes that the text of such a value has."""

_short_to_json = msgspec.json.Encoder().encode
_to_json = into_buffer(msgspec.json.Encoder())
_from_json = msgspec.json.Decoder().decode
_skim = msgspec.json.Decoder(msgspec.Raw).decode


def encode(value: Any, *, bytes_max: int = VALUE_BYTES_MAX, takes_objects: bool = True) -> bytes:
    """Return the value as JSON text in UTF-8; equal up to the order of dicts, equal bytes.

    `takes_objects`: whether dataclasses and models are written, as dicts of their fields. Raises
    UnserialisableValueError with the place and the type, or ValueTooLargeError.
    """
    try:
        kind = type(value)
        if kind is dict or kind is list:
            if count_nodes(value, 1) < 0:
                value = tagged(value, takes_objects=takes_objects)
            text = _to_json(value)
        elif kind is bool or value is None or (kind is str and len(value) < LARGE_BYTES):
            text = _short_to_json(value)
        elif kind is str:
            text = _to_json(value)
        else:
            text = _to_json(tagged(value, takes_objects=takes_objects))
    except RecursionError:
        raise too_deep(None) from None
    except UnicodeEncodeError:
        tagged(value)
        raise AssertionError("the slow walk finds the surrogate") from None
    check_size(text, bytes_max)
    return text


def check_size(text: bytes, bytes_max: int) -> None:
    """Raise ValueTooLargeError for a text above the limit; `bytes` count with their own length."""
    if len(text) > bytes_max and (count := size(text)) > bytes_max:
        raise too_large(count, bytes_max)


def size(text: bytes) -> int:
    """Return the bytes that a value counts for: those of its text, without the overhead of
    base64."""
    total = len(text)
    start = text.find(_BYTES)
    while start >= 0:
        start += len(_BYTES)
        end = text.find(b'"', start)
        if end < 0:
            break
        coded = end - start
        total -= coded - (coded // 4 * 3 - text.count(b"=", max(start, end - 2), end))
        start = text.find(_BYTES, end)
    return total


_BYTES = b'{"$bytes":"'
"""In the text of a value, these characters begin a tag and nothing else."""
_MARK = b'"%s"' % OBJECT.encode()
"""In the text of a value with objects in it; seldom elsewhere."""
_LIFTED_FROM = 64 * 1024
_LOOKS_MAX = 10_000
_from_base64 = msgspec.json.Decoder(bytes).decode


def lift(text: bytes) -> tuple[bytes, list[bytes]]:
    """Return the text with numbers in the places of its large `bytes`, and these bytes.

    For texts with tags: to read `bytes` as text first would take several times as long.
    """
    if len(text) < _LIFTED_FROM:
        return text, []
    parts: list[bytes] = []
    lifted: list[bytes] = []
    kept = looks = 0
    start = text.find(_BYTES)
    while start >= 0 and looks < _LOOKS_MAX:
        looks += 1
        start += len(_BYTES) - 1
        end = text.find(b'"', start + 1)
        if end - start > _LIFTED_FROM and text[end + 1 : end + 2] == b"}":
            lifted.append(_from_base64(memoryview(text)[start : end + 1]))
            parts += (text[kept:start], b"%d" % (len(lifted) - 1))
            kept = end + 1
        start = text.find(_BYTES, max(start, end))
    if not lifted:
        return text, lifted
    return b"".join((*parts, text[kept:])), lifted


def decode(text: bytes, read_objects: Callable[[bytes], Any] | None = None) -> Any:
    """Return the value that `encode` wrote; raises UnserialisableValueError for any other text.

    `read_objects` reads a text with objects in it instead; without it they are their fields.
    """
    try:
        if not _has_tags(text):
            return _from_json(text)
        if read_objects is not None and _MARK in text:
            return read_objects(text)
        short, lifted = lift(text)
        value = revive(_from_json(short), lifted)
    except RecursionError:
        raise too_deep(None) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise invalid(str(error)) from None
    return value


def check(text: bytes, bytes_max: int = VALUE_BYTES_MAX) -> None:
    """Check that a text from an untrusted process is a value; raises as `decode` and `encode`
    do.

    Cheap, and for large plain texts without building the value: what an isolate sends may be made
    to cost its reader a multiple of its size in memory.
    """
    if len(text) > bytes_max * 4 // 3 + 1024:
        raise too_large(len(text), bytes_max)
    try:
        if _has_tags(text):
            short, lifted = lift(text)
            if short.count(b",") + short.count(b"[") + short.count(b"{") > 2 * TAGGED_NODES_MAX:
                raise too_large(len(text), bytes_max)
            check_size(text, bytes_max)
            revive(_from_json(short), lifted)
        elif len(text) > bytes_max:
            raise too_large(len(text), bytes_max)
        elif len(text) <= _SKIM_FROM or _may_have_odd_number(text):
            _from_json(text)
        else:
            _skim(text)
            # Skimming proves the grammar but does not look at the bytes of strings.
            text.decode("utf-8")
    except RecursionError:
        raise too_deep(None) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise invalid(str(error)) from None


def _has_tags(text: bytes) -> bool:
    return b'"$' in text or b"\\u0024" in text


_SKIM_FROM = 256 * 1024
_KINDS = bytes(
    b"0e+ "[0 if c in b"0123456789" else 1 if c in b"eE" else 2 if c in b"+" else 3]
    for c in range(256)
)
"""Of each byte whether it is a digit, an exponent's letter, a plus, or anything else."""
_ODD_NUMBERS = (b"0e000", b"0e+000", b"0" * 300)


def _may_have_odd_number(text: bytes) -> bool:
    """Whether there may be a number that is refused only when it is built.

    One that has no float, or more digits than an int may have. (An expression would say it in a
    line, and take seconds for what a value may hold.)
    """
    kinds = text.translate(_KINDS)
    return any(odd in kinds for odd in _ODD_NUMBERS)
