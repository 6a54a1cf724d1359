"""Lean rows: a history without the large payloads that no replay needs.

Left out are the payloads of events, which the rows of their waits repeat, and the errors of
attempts, the last of which its step's row repeats.
"""

from __future__ import annotations

import msgspec

from ..events import Row

SMALL_BYTES_MAX = 4 * 1024
"""Bytes of a row's payload up to which it is left as it is."""
_NULL = msgspec.Raw(b"null")
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


_ATTEMPTS = ("attempt_errored", "rollback_attempt_errored")
_ERROR = msgspec.Raw(b'{"name":"Error","message":""}')


def lean(row: Row) -> Row:
    """Return the row; a large event row has null and its size as its payload, a large row of a
    failed attempt an empty error."""
    payload = row.payload
    if payload is None or len(payload) <= SMALL_BYTES_MAX:
        return row
    if row.type == "event_received":
        members = _DECODER.decode(payload)
        if "size" not in members:
            members["size"] = msgspec.Raw(b"%d" % len(bytes(members["payload"])))
        members["payload"] = _NULL
    elif row.type in _ATTEMPTS:
        members = _DECODER.decode(payload)
        members["error"] = _ERROR
    else:
        return row
    return msgspec.structs.replace(row, payload=_ENCODER.encode(members))
