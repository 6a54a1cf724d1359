"""Fork server: the loop of a zygote. It forks on request, reports, reaps, and ends with its owner.

Its owner is at the other end of the control socket: one message a packet, descriptors beside it.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from ..protocol import control_socket
from .child_processes import children

FILES_MAX = 4096
"""Descriptors of a zygote, and of what it forked, at its start: that closes all that are not its
own, one by one where the kernel or the C library lacks close_range. So there is a bound."""


class Kill(msgspec.Struct, array_like=True, tag=2):
    """End a process, for an owner that has no descriptor of it."""

    id: int


class Spawned(msgspec.Struct, array_like=True, tag=3):
    """The process exists. Beside it: its pidfd, where the kernel has such a thing."""

    id: int
    pid: int


class SpawnFailed(msgspec.Struct, array_like=True, tag=4):
    """The fork failed."""

    id: int
    message: str


class Exited(msgspec.Struct, array_like=True, tag=5):
    """A process ended and was reaped."""

    id: int
    status: int
    """As from wait(2)."""
    cpu_s: float
    rss_max_bytes: int


Request = TypeVar("Request", bound=Any)
"""A struct with an `id` and the tag 1."""

_encode = msgspec.msgpack.Encoder().encode


class ForkServer(Generic[Request]):
    """Forks a process for each request of its owner."""

    def __init__(
        self,
        channel: control_socket.Control,
        request: type[Request],
        *,
        fds: int,
        be_child: Callable[[Request, list[int]], NoReturn],
    ) -> None:
        """`fds`: the number of descriptors beside a request. `be_child` is the forked process: it
        must not return."""
        self._channel = channel
        self._decode = msgspec.msgpack.Decoder(request | Kill).decode
        self._fds = fds
        self._be_child = be_child
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._children = children(self._poll)

    def serve(self) -> NoReturn:
        """Answer the owner and reap processes until the owner ends."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._channel.fileno():
                    self._receive()
                else:
                    for ended in self._children.reap(fd):
                        self._channel.send(_encode(Exited(*ended)))

    def _receive(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            # The owner is gone, and so is the reason of every process. The kernel's signal at our
            # death does the same; this is faster where it was cleared by a change of user.
            self._children.kill_all()
            os._exit(0)
        for data, fds in messages:
            match self._decode(data):
                case Kill(id):
                    self._children.kill(id)
                case request:
                    self._spawn(request, fds)
            for fd in fds:
                os.close(fd)

    def _spawn(self, request: Request, fds: list[int]) -> None:
        try:
            if len(fds) != self._fds:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pid = os.fork()
        except OSError as error:
            self._channel.send(_encode(SpawnFailed(request.id, str(error))))
        else:
            if pid == 0:
                try:
                    os.setsid()
                    self._children.leave()
                    self._be_child(request, fds)
                finally:
                    os._exit(1)
            held = self._children.add(request.id, pid)
            self._channel.send(_encode(Spawned(request.id, pid)), held)
