"""SQL zygote: a process that has imported DuckDB and Arrow, and forks SQL processes from there.

It opens no log and runs no SQL itself: it has one thread and nothing of any tenant. It ends with
the platform that started it, and what it forked ends with it.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import zoneinfo
from typing import NoReturn

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.dataset

from dynamic_workflows.eventlog.query import arrow_filesystem
from dynamic_workflows.eventlog.segments import compaction, segment

from ..isolates.child_processes import children
from ..protocol import control_socket
from ..sandbox import linux
from . import child
from .messages import SqlFrames, SqlOpening

_FDS_MAX = 4096


class SqlSpawn(msgspec.Struct, array_like=True, tag=1):
    """Fork a process around the socket that is sent with this message."""

    id: int
    opening: SqlOpening


class SqlKill(msgspec.Struct, array_like=True, tag=2):
    """End a process, for a platform that has no pidfd of it."""

    id: int


class SqlSpawned(msgspec.Struct, array_like=True, tag=1):
    """The process exists, unless `pid` is 0. With it comes its pidfd, where the kernel has them."""

    id: int
    pid: int
    message: str = ""


class SqlExited(msgspec.Struct, array_like=True, tag=2):
    """The process has ended; `status` as from wait(2)."""

    id: int
    status: int


_IMPORTED = (duckdb, pa, pyarrow.dataset, compaction, arrow_filesystem, segment)
"""What SQL processes use, so that none has to import it."""

_decode = msgspec.msgpack.Decoder(SqlSpawn | SqlKill).decode
_encode = msgspec.msgpack.Encoder().encode


def libraries() -> list[str]:
    """Return the paths that imports and time zones may still be read from."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    places = {
        *zoneinfo.TZPATH,
        os.path.dirname(os.__file__),
        *(os.path.dirname(str(module.__file__)) for module in (duckdb, pa, msgspec)),
        *(os.path.join(package, name) for name in ("eventlog", "loaders")),
    }
    return sorted({os.path.realpath(place) for place in places if os.path.isdir(place)})


def main(fd: int, isolation: str) -> NoReturn:
    """Run the zygote on this end of the control socket."""
    channel = control_socket.over(socket.socket(fileno=linux.move_up(fd)))
    linux.limit_files(_FDS_MAX)
    linux.name_process("dw-sql-zygote")
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    forked = children(poll)
    readable = libraries()
    gc.collect()
    gc.freeze()
    own_pid = os.getpid()
    while True:
        for ready, _ in poll.poll():
            if ready != channel.fileno():
                for ended in forked.reap(ready):
                    channel.send(_encode(SqlExited(ended.id, ended.status)))
                continue
            messages = channel.receive()
            if messages is None:
                forked.kill_all()
                os._exit(0)
            for data, fds in messages:
                match _decode(data):
                    case SqlKill(id):
                        forked.kill(id)
                    case SqlSpawn() as spawn:
                        try:
                            if not fds:
                                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                            pid = os.fork()
                        except OSError as error:
                            channel.send(_encode(SqlSpawned(spawn.id, 0, str(error))))
                            continue
                        if pid == 0:
                            forked.leave()
                            _be_child(spawn.opening, fds[0], isolation, readable, own_pid)
                        held = forked.add(spawn.id, pid)
                        channel.send(_encode(SqlSpawned(spawn.id, pid)), held)
                for fd in fds:
                    os.close(fd)


def _be_child(
    opening: SqlOpening, fd: int, isolation: str, readable: list[str], zygote_pid: int
) -> NoReturn:
    """Run the child; never returns into the zygote's code."""
    try:
        os.setsid()
        linux.die_with_parent()
        if os.getppid() != zygote_pid:
            os._exit(0)
        os.dup2(linux.move_up(fd), 3, inheritable=False)
        os.closerange(4, _FDS_MAX)
        linux.name_process("dw-sql")
        frames = SqlFrames(socket.socket(fileno=3))
        child.serve(frames, opening, isolation=isolation, libraries=readable)
    finally:
        os._exit(1)
