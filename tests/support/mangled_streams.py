"""Bytes that no sender of ours sends, and what a channel makes of them."""

from __future__ import annotations

from dynamic_workflows.loaders.protocol.channel import (
    FrameReader,
)
from dynamic_workflows.loaders.protocol.messages import Frame, ProtocolViolation

LIMIT = 8 << 20


def read(data: bytes, *, limit: int = LIMIT) -> list[Frame]:
    reader = FrameReader(message_bytes_max=limit)
    reader.feed(data)
    frames, _ = reader.take(1 << 60)
    return frames


def check_survives(data: bytes) -> None:
    try:
        frames = read(data)
    except ProtocolViolation:
        return
    for kind, life, body in frames:
        assert type(kind) is int
        assert type(life) is int
        assert type(body) is bytes
