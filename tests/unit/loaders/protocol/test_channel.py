"""The channel carries any messages in order, and nothing hostile gets past its reader."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mangled_streams import LIMIT, check_survives, read

from dynamic_workflows.loaders.protocol.channel import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    PART,
    PART_BYTES,
    Channel,
    FrameReader,
    encode,
)
from dynamic_workflows.loaders.protocol.messages import Frame, ProtocolViolation

# Zero is the kind of a part, below are the ends' own; above 64 bits nothing is sent.
messages = st.tuples(
    st.integers(1, 2**63), st.integers(0, 2**63), st.binary(max_size=64) | st.just(b"x" * 700_000)
)


def batch(value: object) -> bytes:
    body = msgspec.msgpack.encode(value)
    return struct.pack("<I", len(body)) + body


@given(sent=st.lists(messages, min_size=1, max_size=40), cuts=st.lists(st.integers(1, 999_999)))
@settings(max_examples=60)
def test_any_messages_arrive_in_order_however_the_bytes_are_cut(
    sent: list[Frame], cuts: list[int]
) -> None:
    data = b"".join(encode(sent))
    reader = FrameReader(message_bytes_max=LIMIT)
    got: list[Frame] = []
    for size in [*cuts, len(data)]:
        reader.feed(data[:size])
        data = data[size:]
        frames, _ = reader.take(1 << 60)
        got += frames
    assert got == sent
    assert reader.held_bytes == 0


@given(st.lists(messages, min_size=1, max_size=3000))
@settings(max_examples=20)
def test_batches_keep_their_bounds(sent: list[Frame]) -> None:
    for one in encode(sent):
        assert len(one) - 4 <= BATCH_BYTES_MAX
        assert 0 < len(msgspec.msgpack.decode(one[4:])) <= BATCH_MESSAGES_MAX


@given(st.binary(max_size=300))
@settings(max_examples=500)
def test_garbage_is_a_violation_or_waits_for_more(data: bytes) -> None:
    check_survives(data)


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_garbage_in_a_whole_batch_is_a_violation_or_messages(body: bytes) -> None:
    check_survives(struct.pack("<I", len(body)) + body)


any_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=12,
)


@given(any_value)
@settings(max_examples=500)
def test_values_of_other_shapes_are_violations(value: object) -> None:
    check_survives(batch(value))


@given(st.lists(messages, min_size=1, max_size=5), st.data())
@settings(max_examples=300)
def test_a_flipped_byte_is_a_violation_or_other_messages(
    sent: list[Frame], data: st.DataObject
) -> None:
    good = bytearray(b"".join(encode(sent)))
    place = data.draw(st.integers(0, min(len(good) - 1, 200)))
    good[place] ^= data.draw(st.integers(1, 255))
    check_survives(bytes(good))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 0),
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", BATCH_BYTES_MAX + 1),
        batch([]),
        batch([[1, 0, b""]] * (BATCH_MESSAGES_MAX + 1)),
        batch({"kind": 1}),
        batch([[1, 0]]),
        batch([[1, 0, b"", 0]]),
        batch([[1, 0, "text"]]),
        batch([["1", 0, b""]]),
        batch([[1.5, 0, b""]]),
        batch([[1, None, b""]]),
        batch([1, 0, b""]),
        batch(msgspec.msgpack.Ext(5, b"")),
        struct.pack("<I", 100_000) + b"\x91" * 100_000,  # nested beyond any stack
        struct.pack("<I", 5) + b"\xdd\xff\xff\xff\xff",  # four billion messages
        struct.pack("<I", 6) + b"\xc6\xff\xff\xff\xff.",
        struct.pack("<I", 40) + pickle.dumps([[1, 0, b"x" * 10]]).ljust(40)[:40],
        batch([[PART, 0, b"short"]]),
        batch([[PART, 0, b""]]),
    ],
)
def test_hostile_batches_are_violations(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read(data)


def test_parts_never_grow_beyond_the_limit_of_a_message() -> None:
    part = batch([[PART, 0, b"x" * PART_BYTES]])
    reader = FrameReader(message_bytes_max=3 * PART_BYTES)
    for _ in range(3):
        reader.feed(part)
        reader.take(1)
    assert reader.held_bytes == 3 * PART_BYTES
    reader.feed(part)
    with pytest.raises(ProtocolViolation, match="above"):
        reader.take(1)


def test_the_last_piece_counts_towards_the_limit_as_well() -> None:
    data = batch([[PART, 0, b"x" * PART_BYTES]]) + batch([[1, 0, b"yy"]])
    assert len(read(data, limit=PART_BYTES + 2)[0][2]) == PART_BYTES + 2
    with pytest.raises(ProtocolViolation):
        read(data, limit=PART_BYTES + 1)


class End:
    """One end of a socket with a channel on it."""

    def __init__(self, sock: socket.socket, **options: int) -> None:
        self.frames: list[Frame] = []
        self.news = asyncio.Event()
        self.turns: list[int] = []
        self.end: asyncio.Future[ProtocolViolation | None] = (
            asyncio.get_running_loop().create_future()
        )
        self.channel = Channel(
            sock,
            loop=asyncio.get_running_loop(),
            on_frames=self.on_frames,
            on_end=self.end.set_result,
            message_bytes_max=256 << 20,
            unsent_bytes_pause=options.get("unsent_bytes_pause"),
        )

    def on_frames(self, frames: list[Frame]) -> None:
        self.frames += frames
        self.news.set()
        self.turns.append(len(frames))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.frames) < count:
                self.news.clear()
                await self.news.wait()


async def test_messages_of_one_turn_share_a_write() -> None:
    ours, theirs = socket.socketpair()
    one, other = End(ours), End(theirs)
    for number in range(100):
        one.channel.send([(1, number, b"x")])
    await other.until(100)
    assert [life for _, life, _ in other.frames] == list(range(100))
    assert other.turns == [100]
    one.channel.close()
    assert await other.end is None
    other.channel.close()


async def test_both_sides_may_pour_without_waiting_for_each_other() -> None:
    ours, theirs = socket.socketpair()
    one, other = End(ours, unsent_bytes_pause=1 << 20), End(theirs)
    body = b"x" * 100_000
    for number in range(300):
        one.channel.send([(1, number, body)])
        other.channel.send([(1, number, body)])
    await asyncio.gather(one.until(300), other.until(300))
    one.channel.close()
    other.channel.close()


async def test_a_side_that_reads_nothing_is_not_read_either() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    one = End(ours, unsent_bytes_pause=1 << 20)
    one.channel.send([(1, 0, b"x" * (4 << 20))])
    await asyncio.sleep(0)
    theirs.send(batch([[1, 1, b"not heard yet"]]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert one.frames == []
    async with asyncio.timeout(60):
        while not one.frames:
            try:
                theirs.recv(1 << 16)
            except BlockingIOError:
                await asyncio.sleep(0)
    one.channel.close()
    theirs.close()


async def test_a_flood_is_worked_off_in_turns_of_bounded_size() -> None:
    ours, theirs = socket.socketpair()
    one, other = End(ours), End(theirs)
    one.channel.send([(1, number, b"") for number in range(50_000)])
    await other.until(50_000)
    assert [life for _, life, _ in other.frames] == list(range(50_000))
    assert max(other.turns) <= 2048 + BATCH_MESSAGES_MAX
    one.channel.close()
    other.channel.close()


async def test_garbage_ends_the_channel_with_the_violation() -> None:
    ours, theirs = socket.socketpair()
    one = End(ours)
    theirs.send(b"GET / HTTP/1.1\r\n\r\n")
    violation = await one.end
    assert isinstance(violation, ProtocolViolation)
    one.channel.close()
    theirs.close()


async def test_sending_on_a_closed_channel_is_harmless() -> None:
    ours, theirs = socket.socketpair()
    one = End(ours)
    theirs.close()
    one.channel.send([(1, 0, b"x")])
    assert await one.end is None
    one.channel.close()
    one.channel.send([(1, 0, b"x")])
