"""A million streams that were mangled on their way."""

from __future__ import annotations

import random

import pytest
from mangled_streams import check_survives

from dynamic_workflows.loaders.protocol.channel import (
    encode,
)


@pytest.mark.slow
def test_a_million_mangled_streams_are_violations_or_other_messages() -> None:
    seed = random.SystemRandom().getrandbits(64)
    chance = random.Random(seed)
    whole = b"".join(encode([(17, 1, b"step" * 8), (20, 1, b"done"), (26, 0, b"log")]))
    for _ in range(1_000_000):
        data = bytearray(whole * chance.randint(1, 3))
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randint(1, 8)]
                case _:
                    data[place:place] = chance.randbytes(chance.randint(1, 8))
            data = data or bytearray(b"\0")
        try:
            check_survives(bytes(data))
        except BaseException:
            print(f"seed {seed}, data {bytes(data)!r}")
            raise
