"""SQL zygote: a process that has imported DuckDB and Arrow, and forks SQL processes from there.

It opens no log and runs no SQL itself: it has one thread and nothing of any tenant. It ends with
the platform that started it, and what it forked ends with it.
"""

from __future__ import annotations

import gc
import os
import socket
import zoneinfo
from typing import NoReturn

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.dataset

from dynamic_workflows.eventlog.query import arrow_filesystem
from dynamic_workflows.eventlog.segments import compaction, segment

from ..isolates.fork_server import FILES_MAX, ForkServer
from ..protocol import control_socket
from ..sandbox import linux
from . import child
from .messages import SqlFrames, SqlOpening, SqlSpawn

_IMPORTED = (duckdb, pa, pyarrow.dataset, compaction, arrow_filesystem, segment)
"""What SQL processes use, so that none has to import it."""


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
    linux.limit_files(FILES_MAX)
    linux.name_process("dw-sql-zygote")
    readable = libraries()
    own_pid = os.getpid()

    def be_child(spawn: SqlSpawn, fds: list[int]) -> NoReturn:
        _be_child(spawn.opening, fds[0], isolation, readable, own_pid)

    server = ForkServer(channel, SqlSpawn, fds=1, be_child=be_child)
    gc.collect()
    gc.freeze()
    server.serve()


def _be_child(
    opening: SqlOpening, fd: int, isolation: str, readable: list[str], zygote_pid: int
) -> NoReturn:
    """Run the child; never returns into the zygote's code."""
    try:
        linux.die_with_parent()
        if os.getppid() != zygote_pid:
            os._exit(0)
        os.dup2(linux.move_up(fd), 3, inheritable=False)
        os.closerange(4, FILES_MAX)
        linux.name_process("dw-sql")
        frames = SqlFrames(socket.socket(fileno=3))
        child.serve(frames, opening, isolation=isolation, libraries=readable)
    finally:
        os._exit(1)
