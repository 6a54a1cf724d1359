"""Lean rows: a history without the payloads of events, which are large and seldom needed."""

from __future__ import annotations

import msgspec

from .events import Row

SMALL_BYTES_MAX = 4 * 1024
"""Bytes of a row's payload up to which it is left as it is."""
_NULL = msgspec.Raw(b"null")
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


def lean(row: Row) -> Row:
    """The row; an event_received row with a large payload has null and its size instead."""
    payload = row.payload
    if row.type != "event_received" or payload is None or len(payload) <= SMALL_BYTES_MAX:
        return row
    members = _DECODER.decode(payload)
    if "size" not in members:
        members["size"] = msgspec.Raw(b"%d" % len(bytes(members["payload"])))
    members["payload"] = _NULL
    return msgspec.structs.replace(row, payload=_ENCODER.encode(members))
