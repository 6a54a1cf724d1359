"""Zygote: a clean, single-threaded interpreter from which a supervisor's isolates are forked.

It imports ahead what tenants may import, builds the walls that all isolates share, and then only
forks, reaps and reports. It never sees a byte of a tenant. It dies with its supervisor (the control
socket ends, and the kernel's parent-death signal), and its isolates die with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import importlib.util
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from dynamic_workflows.eventlog.errors import SandboxUnavailable

from ..guest import isolate_main
from ..protocol import control_socket
from ..protocol.heartbeat import HeartbeatWriter
from ..sandbox import linux
from ..sandbox.readable_paths import find_readable
from ..sandbox.sandbox import UNSAFE, Sandbox, SandboxPlan
from . import fork_hooks, page_packing
from .fork_server import FILES_MAX, Exited, ForkServer, Spawned, SpawnFailed

GUEST = "dynamic_workflows.loaders.guest.guest:Guest"
"""The guest that tenants get; tests have others."""


class ZygotePlan(msgspec.Struct, array_like=True):
    """The first message to a zygote: what all its isolates have in common."""

    sandbox: SandboxPlan
    packages: list[str]
    guest: str
    """Where the class is that serves the channel: "module:name"."""
    supervisor_pid: int


class Spawn(msgspec.Struct, array_like=True, tag=1):
    """Fork an isolate. Beside it: its end of the channel, its heartbeat page, its log pipe."""

    id: int
    memory_bytes: int
    files_max: int
    tmp_bytes: int
    calls_in_flight_max: int
    bytes_in_flight_max: int
    is_blank: bool
    """It will wait for its owner: time to rehearse, so that it starts faster."""


class Ready(msgspec.Struct, array_like=True, tag=1):
    """The zygote is sandboxed and forks isolates from now on."""

    level: str
    notes: list[str]
    """What was asked for and is missing without harm: packages that cannot be imported."""
    rss_bytes: int
    """Memory that every isolate shares with the zygote."""


class Refused(msgspec.Struct, array_like=True, tag=2):
    """The sandbox cannot be built on this host; the zygote ends."""

    message: str


Report = Ready | Refused | Spawned | SpawnFailed | Exited
_SPAWN_FDS = 3
_encode = msgspec.msgpack.Encoder().encode

# Modules that start-up does not import by itself and that tenants use. Native ones have to be here:
# behind the walls no memory becomes executable, so nothing native can be loaded any more.
PRELOADED = """
    _bisect _blake2 _bz2 _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw
    _contextvars _csv _datetime _decimal _elementtree _hashlib _heapq _json _lzma _md5
    _multibytecodec _opcode _pickle _queue _random _sha1 _sha256 _sha2 _sha3 _sha512 _sqlite3
    _statistics _struct _uuid _zoneinfo array binascii cmath fcntl math mmap pyexpat select
    termios unicodedata zlib abc asyncio base64 calendar codecs collections.abc contextvars copy
    csv dataclasses datetime decimal difflib encodings.idna encodings.latin_1 enum fractions
    functools graphlib hashlib hmac html inspect io itertools json linecache logging operator
    pathlib pickle platform pprint random re secrets shlex sqlite3 statistics string struct
    tempfile textwrap threading time tokenize traceback types typing urllib.parse uuid weakref
    xml.etree.ElementTree zoneinfo concurrent.futures.thread importlib.metadata
    importlib.resources multiprocessing.connection tzdata annotated_types typing_extensions
    pydantic pydantic.dataclasses pydantic.type_adapter
""".split()


# What runs at the start of an isolate and cannot be rehearsed, because there is no way back.
_RUN_AT_STARTS = frozenset(
    f"{__package__.rpartition('.')[0]}.{name}"
    for name in """
    guest.isolate_main guest.logs isolates.fork_server isolates.zygote protocol.heartbeat
    sandbox.landlock sandbox.linux sandbox.sandbox sandbox.seccomp
    """.split()
)


def main(fd: int, stdlib: list[str]) -> NoReturn:
    """Run a zygote on this end of the control socket; `stdlib`: where imports are allowed."""
    channel = control_socket.over(socket.socket(fileno=linux.move_up(fd)))
    linux.limit_files(FILES_MAX)
    plan = _receive_plan(channel)
    linux.die_with_parent()
    linux.name_process("dw-zygote")
    if os.getppid() != plan.supervisor_pid:
        os._exit(0)
    try:
        guest, notes = _import_ahead(plan, stdlib)
        sandbox = Sandbox.prepare(plan.sandbox, readable=find_readable(stdlib))
    except SandboxUnavailable as error:
        channel.send(_encode(Refused(error.message)))
        os._exit(1)
    fork_hooks.restore(has_threads=threading.active_count() > 1)
    os.environ.clear()
    rehearse = _rehearsal(plan)
    if page_packing.IS_ON:
        page_packing.pack(rehearse, _RUN_AT_STARTS)
    # From here on the pages of these objects are shared by all isolates; the collector keeps off.
    gc.freeze()
    shared_bytes = linux.memory_bytes(os.getpid())[1]
    channel.send(_encode(Ready(sandbox.level, notes + sandbox.notes, shared_bytes)))
    be_isolate = IsolateForks(sandbox, guest, rehearse).be_isolate
    ForkServer(channel, Spawn, fds=_SPAWN_FDS, be_child=be_isolate).serve()


def _receive_plan(channel: control_socket.Control) -> ZygotePlan:
    while not (messages := channel.receive()):
        if messages is None:
            os._exit(0)
    return msgspec.msgpack.decode(messages[0][0], type=ZygotePlan)


def _rehearsal(plan: ZygotePlan) -> Callable[[], None]:
    if plan.guest != GUEST:
        return lambda: None
    warmup = importlib.import_module(".warmup", __package__)
    return warmup.rehearse if warmup.IS_ON else lambda: None


def _import_ahead(plan: ZygotePlan, stdlib: list[str]) -> tuple[Any, list[str]]:
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        module, _, attribute = plan.guest.partition(":")
        guest = getattr(importlib.import_module(module), attribute)
        for name in plan.packages:
            try:
                importlib.import_module(name)
            except Exception as error:
                notes.append(f"package {name} cannot be imported: {error}")
    # Lazy imports find the standard library and what lies in packages imported above, nothing else.
    sys.path[:] = stdlib
    # The finders list these directories now: behind Landlock what lies in them may be read, but
    # not they themselves, since site-packages often lies there too.
    importlib.util.find_spec("no_such_module")
    return guest, notes


class IsolateForks:
    """What each forked process does to become an isolate."""

    def __init__(self, sandbox: Sandbox, guest: Any, rehearse: Callable[[], None]) -> None:
        self._sandbox = sandbox
        self._guest = guest
        self._rehearse = rehearse
        self._lifeline = None
        if sandbox.level == UNSAFE and not (linux.has_parent_signal() and linux.has_cpu_clocks()):
            lifeline = importlib.import_module(".parent_death", __package__)
            self._lifeline = lifeline.Lifeline()

    def be_isolate(self, spawn: Spawn, fds: list[int]) -> NoReturn:
        """Run the child as an isolate; never returns into the zygote's code."""
        status = isolate_main.FAILED
        try:
            line = self._lifeline
            _arrange(fds, keep=[*self._sandbox.kept_fds, *([line.fd] if line else [])])
            linux.name_process("dw-isolate")
            self._sandbox.apply(
                memory_bytes=spawn.memory_bytes,
                files_max=spawn.files_max,
                tmp_bytes=spawn.tmp_bytes,
            )
            if spawn.is_blank:
                self._rehearse()
            status = isolate_main.main(
                self._guest,
                make_writer=line.hold if line else HeartbeatWriter,
                calls_in_flight_max=spawn.calls_in_flight_max,
                bytes_in_flight_max=spawn.bytes_in_flight_max,
            )
        except BaseException as error:
            # Nothing of a tenant has run if this is about the walls: the supervisor is told.
            isolate_main.report_failure(error)
        finally:
            os._exit(status)


def _arrange(fds: list[int], keep: list[int]) -> None:
    """Move descriptors to 0: nothing; 1, 2: the log pipe; 3: the channel; 4: the heartbeat page;
    close the rest."""
    channel, page, log = (fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in fds)
    # 0 is the zygote's own already: nothing.
    for fd, number in ((log, 1), (log, 2), (channel, 3), (page, 4)):
        os.dup2(fd, number, inheritable=False)
    first = 5
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, FILES_MAX)
