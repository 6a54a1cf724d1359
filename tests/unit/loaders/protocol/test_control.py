"""Messages to a zygote arrive whole and with their own descriptors, on either kind of socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from dynamic_workflows.loaders.protocol import control_socket
from dynamic_workflows.loaders.protocol.control_socket import Control, Message, StreamControl


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Control, Control]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield control_socket.over(ours), control_socket.over(theirs)


def heard(end: Control, count: int) -> list[Message]:
    found: list[Message] = []
    while len(found) < count:
        messages = end.receive()
        assert messages is not None
        found += messages
    return found


def named(number: int) -> int:
    """A descriptor of a pipe in which this number lies."""
    reader, writer = os.pipe()
    os.write(writer, str(number).encode())
    os.close(writer)
    return reader


def test_messages_keep_their_bounds_and_their_descriptors(ends: tuple[Control, Control]) -> None:
    ours, theirs = ends
    for number in range(12):
        fds = [named(10 * number + index) for index in range(number % 4)]
        ours.send(b"x" * number + b"end", fds)
        for fd in fds:
            os.close(fd)
    for number, (data, fds) in enumerate(heard(theirs, 12)):
        assert data == b"x" * number + b"end"
        assert [int(os.read(fd, 9)) for fd in fds] == [10 * number + i for i in range(number % 4)]
        for fd in fds:
            os.close(fd)
    assert theirs.receive() == []


def test_the_end_of_the_other_side_is_heard_after_its_last_words(
    ends: tuple[Control, Control],
) -> None:
    ours, theirs = ends
    ours.send(b"last")
    ours.close()
    assert heard(theirs, 1) == [(b"last", [])]
    assert theirs.receive() is None


def test_a_message_in_pieces_is_one_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end = control_socket.over(theirs)
    assert isinstance(end, StreamControl)
    whole = control_socket._HEAD.pack(5, 0) + b"hello" + control_socket._HEAD.pack(2, 0) + b"ho"
    with ours, theirs:
        found: list[Message] = []
        for byte in whole:
            ours.send(bytes([byte]))
            found += end.receive() or []
    assert found == [(b"hello", []), (b"ho", [])]


def test_descriptors_that_found_no_room_are_missed_by_their_own_message_alone() -> None:
    """The kernel cuts what is beside a message when the receiver may hold no more files."""
    resource = pytest.importorskip("resource")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end = control_socket.over(theirs)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        sender = control_socket.over(ours)
        kept = [named(number) for number in (1, 2)]
        sender.send(b"first", kept[:1])
        sender.send(b"second", kept[1:])
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            assert heard(end, 1) == [(b"first", [])]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        ((data, fds),) = heard(end, 1)
        assert data == b"second"
        assert int(os.read(fds[0], 9)) == 2
        for fd in (*kept, *fds):
            os.close(fd)
