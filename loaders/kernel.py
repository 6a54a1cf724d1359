"""Kernel: the few calls of Linux that Python's own library does not offer, by ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import signal

_libc = ctypes.CDLL(None, use_errno=True)

MACHINE = platform.machine()

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_MDWE = 65

# Numbers of system calls that differ between machines; all later ones are the same everywhere.
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126},
    "aarch64": {"pivot_root": 41, "capset": 91},
}
_COMMON_NUMBERS = {
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}


_CAPABILITY_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
_NO_CAPABILITIES = (ctypes.c_uint32 * 6)()


def syscall(name: str, *arguments: object) -> int:
    """Make a system call by name, or raise OSError."""
    number = _COMMON_NUMBERS.get(name) or _NUMBERS[MACHINE][name]
    return _checked(
        name,
        _libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments),
        ),
    )


def prctl(option: int, *arguments: object) -> None:
    """prctl(2), or raise OSError."""
    four = (*arguments, 0, 0, 0, 0)[:4]
    longs = (ctypes.c_ulong(a) if isinstance(a, int) else a for a in four)
    _checked("prctl", _libc.prctl(option, *longs))


def unshare(flags: int) -> None:
    """unshare(2), or raise OSError."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2), or raise OSError."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _checked(f"mount {target}", result)


def umount(target: str, flags: int) -> None:
    """umount2(2), or raise OSError."""
    _checked(f"umount {target}", _libc.umount2(os.fsencode(target), ctypes.c_int(flags)))


def _checked(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_dumpable(is_dumpable: bool) -> None:
    """Whether others of the same user may trace this process or read its memory."""
    prctl(PR_SET_DUMPABLE, int(is_dumpable))


def name_process(name: str) -> None:
    """The name that `ps -o comm` shows; at most 15 bytes."""
    prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def bound_capabilities() -> None:
    """Let no program that is started from here have a capability; those of this process stay."""
    with contextlib.suppress(OSError):  # past the last one; or there were none to begin with
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    syscall("capset", _CAPABILITY_HEADER, _NO_CAPABILITIES)


def move_up(fd: int) -> int:
    """The same file at a descriptor above those that an isolate uses; the old one is closed."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
    os.close(fd)
    return moved


def limit_files(most: int) -> None:
    """Let this process, and what it forks, open no descriptor from this number on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft > most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def kill(pidfd: int) -> None:
    """SIGKILL; harmless when the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def memory_bytes(pid: int) -> tuple[int, int]:
    """(virtual, resident) size in bytes, or (0, 0) when the process has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
    except (OSError, ValueError):
        return 0, 0
    return int(virtual) * resource.getpagesize(), int(resident) * resource.getpagesize()
