"""Growing buffers: encoding large data, so that a lack of memory is a MemoryError.

The encoder of msgspec loses the `bytes` that it writes to where they cannot grow, and ends the
process with a fault of memory. A bytearray that cannot grow stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

LARGE_BYTES = 64 * 1024


def into_buffer(encoder: msgspec.json.Encoder | msgspec.msgpack.Encoder) -> Callable[[Any], bytes]:
    """Return what `encoder.encode` does, for data of any size."""
    encode_into = encoder.encode_into

    def encode(value: Any) -> bytes:
        buffer = bytearray()
        encode_into(value, buffer)
        return bytes(buffer)

    return encode
