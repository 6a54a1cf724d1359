"""Linux: the few system calls that Python's own library does not offer, by ctypes.

Or that it does not offer everywhere: a Python that was built against an old C library lacks some
that the kernel has. On other systems, and on kernels without it, each raises OSError (ENOSYS).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import platform
import resource
import signal
import sys
import time

IS_LINUX = sys.platform == "linux"
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
    "x86_64": {"pivot_root": 155, "capset": 126, "memfd_create": 319},
    "aarch64": {"pivot_root": 41, "capset": 91, "memfd_create": 279},
}
_COMMON_NUMBERS = {
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}


_CAPABILITY_HEADER = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
_NO_CAPABILITIES = (ctypes.c_uint32 * 6)()


def syscall(name: str, *arguments: object) -> int:
    """Make a system call by name, or raise OSError."""
    number = _COMMON_NUMBERS.get(name) or _NUMBERS.get(MACHINE, {}).get(name)
    if number is None or not IS_LINUX:
        raise _unknown(name)
    return _checked(
        name,
        _libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments),
        ),
    )


def prctl(option: int, *arguments: object) -> None:
    """Call prctl(2); raises OSError."""
    if not IS_LINUX:
        raise _unknown("prctl")
    four = (*arguments, 0, 0, 0, 0)[:4]
    longs = (ctypes.c_ulong(a) if isinstance(a, int) else a for a in four)
    _checked("prctl", _libc.prctl(option, *longs))


def unshare(flags: int) -> None:
    """Call unshare(2); raises OSError."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2); raises OSError."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _checked(f"mount {target}", result)


def umount(target: str, flags: int) -> None:
    """Call umount2(2); raises OSError."""
    _checked(f"umount {target}", _libc.umount2(os.fsencode(target), ctypes.c_int(flags)))


def _unknown(name: str) -> OSError:
    return OSError(errno.ENOSYS, f"{name}: {os.strerror(errno.ENOSYS)}")


def _checked(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent thread ends, if the kernel can."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


@functools.cache
def has_parent_signal() -> bool:
    """Return whether the kernel signals a process when its parent ends."""
    get_pdeathsig, answer = 2, ctypes.c_int()
    try:
        prctl(get_pdeathsig, ctypes.byref(answer))
    except OSError:
        return False
    return True


def set_dumpable(is_dumpable: bool) -> None:
    """Set whether others of the same user may trace this process or read its memory."""
    prctl(PR_SET_DUMPABLE, int(is_dumpable))


def name_process(name: str) -> None:
    """Set the name that `ps -o comm` shows, where possible; at most 15 bytes."""
    with contextlib.suppress(OSError):
        prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()))


def bound_capabilities() -> None:
    """Remove every capability from programs started from here; this process keeps its own."""
    with contextlib.suppress(OSError):  # past the last one; or there were none to begin with
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    syscall("capset", _CAPABILITY_HEADER, _NO_CAPABILITIES)


def memory_file(name: str) -> int:
    """Return a file in memory whose size can be sealed; raises OSError where not supported."""
    cloexec, allow_sealing = 1, 2
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, cloexec | allow_sealing)
    return syscall("memfd_create", ctypes.c_char_p(name.encode()), cloexec | allow_sealing)


def seal_size(fd: int) -> None:
    """Seal the file in memory against shrinking, growing, and changes of the seals."""
    add_seals, seal, shrink, grow = 1033, 1, 2, 4
    fcntl.fcntl(fd, add_seals, seal | shrink | grow)


def move_up(fd: int) -> int:
    """Return a descriptor of the same file above those that an isolate uses; closes the old one."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)
    os.close(fd)
    return moved


def limit_files(most: int) -> None:
    """Limit the descriptors of this process, and of its children, to numbers below this one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft > most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_pidfd(pid: int) -> int:
    """Return a descriptor of the process, readable when it has ended; raises OSError."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return syscall("pidfd_open", pid, 0)  # closed on exec, as all of its kind


@functools.cache
def has_pidfds() -> bool:
    """Return whether processes can be held and waited for by descriptors: Linux from 5.3 on."""
    try:
        os.close(open_pidfd(os.getpid()))
    except OSError:
        return False
    return True


def kill(pidfd: int) -> None:
    """Send SIGKILL; harmless when the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(signal, "pidfd_send_signal"):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        else:
            syscall("pidfd_send_signal", pidfd, int(signal.SIGKILL), 0, 0)


def kill_orphan(pid: int) -> None:
    """Send SIGKILL to an isolate whose zygote has ended and that has no pidfd.

    Its number might be another process's by now. Isolates lead sessions, which few others do.
    """
    with contextlib.suppress(OSError):
        if os.getsid(pid) == pid:
            os.kill(pid, signal.SIGKILL)


@functools.cache
def has_cpu_clocks() -> bool:
    """Return whether one process can read the clock of another's CPU time."""
    return cpu_s(os.getpid()) is not None


def cpu_s(pid: int) -> float | None:
    """Return the CPU seconds that a process has used; None when it has ended, or where unknown."""
    try:
        # See clock_getcpuclockid(3).
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return None


def memory_bytes(pid: int) -> tuple[int, int]:
    """Return (virtual, resident) size in bytes, or (0, 0) when the process has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
    except (OSError, ValueError):
        return 0, 0
    return int(virtual) * resource.getpagesize(), int(resident) * resource.getpagesize()


def peak_bytes(usage: resource.struct_rusage) -> int:
    """Return the peak resident bytes; the unit of `ru_maxrss` differs between systems."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
