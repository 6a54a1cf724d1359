"""SQL sandbox: the restrictions of a process that runs a tenant's SQL.

Landlock lets it read that tenant's directory and the libraries; seccomp leaves it neither network
nor other processes; limits bound memory, CPU and files, and let it write none. Unlike an isolate it
runs in several threads, and as the user who may read the log's files. Required are seccomp and one
wall around files, as for isolates; the process proves them before it takes a statement.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket

from dynamic_workflows.eventlog.errors import SandboxUnavailable
from dynamic_workflows.eventlog.units import MIB

from ..sandbox import landlock, linux, namespaces, seccomp
from ..sandbox.readable_paths import Readable
from ..sandbox.sandbox import UNSAFE

SPARE_BYTES = 192 * MIB
"""What a process may use beside what DuckDB works in and what the answer holds."""
_FILES_MAX = 4096
_NICENESS = 5
_READ_BY_DUCKDB = ("/proc/self/cgroup", "/sys/fs/cgroup")
"""What it looks into when it opens; it does not open where that is forbidden."""
_HINT = "Set isolation='unsafe-none' only where you trust the tenants' SQL."


def enter_sandbox(
    *, isolation: str, libraries: list[str], folder: str | None, memory_bytes: int, ours: int
) -> None:
    """Restrict this process, which has one thread; raises SandboxUnavailable.

    `memory_bytes`: beyond what the process has now. `ours`: a descriptor that has to work after.
    """
    is_walled = isolation != UNSAFE
    if is_walled:
        ruleset = _enclose(libraries, folder)
        _become_owner(folder)
    with contextlib.nullcontext() if is_walled else contextlib.suppress(OSError, ValueError):
        _limit(memory_bytes)
    if not is_walled:
        return
    linux.set_dumpable(False)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if ruleset is not None:
        ruleset.restrict_self()
    seccomp.install(seccomp.program(threads=True, tmp=False))
    _prove(ours)


def _enclose(libraries: list[str], folder: str | None) -> landlock.Ruleset | None:
    if not seccomp.is_supported():
        raise SandboxUnavailable(
            "refusing to run a tenant's SQL: this kernel or processor has no seccomp filter that "
            f"we know (Linux on x86-64 or aarch64). {_HINT}"
        )
    readable = [*libraries, *([folder] if folder is not None else []), *_READ_BY_DUCKDB]
    readable = [path for path in readable if os.path.exists(path)]
    abi = landlock.abi()
    if abi:
        ruleset = landlock.Ruleset(abi=abi)
        ruleset.allow_reading(readable)
        return ruleset
    try:
        namespaces.enter(Readable([], readable))
    except OSError as error:
        raise SandboxUnavailable(
            "refusing to run a tenant's SQL: no wall around files. Missing are Landlock (Linux "
            "5.13 or newer, with landlock in the lsm= list of the boot line) and namespaces "
            f"({error}). {_HINT}"
        ) from None
    return None


def _become_owner(folder: str | None) -> None:
    """Change from root to the owner of the files, so that root's access is not needed to read."""
    if os.geteuid() == 0:
        owner = os.stat(folder) if folder is not None else None
        if owner is not None and owner.st_uid:
            os.setgroups([])
            os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
            os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
            linux.die_with_parent()  # a change of user clears it
    linux.drop_capabilities()


def _limit(memory_bytes: int) -> None:
    before = _data_bytes()
    limits = {"CORE": 0, "FSIZE": 0, "NOFILE": _FILES_MAX, "MEMLOCK": 0, "MSGQUEUE": 0}
    if before:
        # Counts what can be written to and is not shared, unlike AS, which counts reservations.
        limits["DATA"] = before + memory_bytes
    for name, limit in limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            resource.setrlimit(number, (limit, limit))
    os.nice(_NICENESS)


def _data_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith("VmData:")]
    except OSError:
        return 0
    return int(lines[0][1]) * 1024 if lines else 0


def limit_cpu(pid: int, seconds: int) -> None:
    """Allow a process so many more CPU seconds; harmless where the limit may not be set."""
    used_s = linux.cpu_s(pid)
    if used_s is not None and hasattr(resource, "prlimit"):
        with contextlib.suppress(OSError):
            until = int(used_s) + seconds + 1
            resource.prlimit(pid, resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))


def _prove(ours: int) -> None:
    """Check that forbidden operations fail."""
    attempts = (
        lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
        lambda: os.listdir("/"),
        lambda: os.close(os.open("/tmp/sql", os.O_CREAT | os.O_WRONLY)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        lambda: os.kill(os.getppid(), 0),
        lambda: os._exit(0) if os.fork() == 0 else None,
    )
    for attempt in attempts:
        with contextlib.suppress(OSError):
            attempt()
            raise SandboxUnavailable(f"the walls around SQL do not hold on this kernel. {_HINT}")
    os.fstat(ours)
