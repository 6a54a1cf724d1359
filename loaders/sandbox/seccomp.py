"""Seccomp: a filter that the kernel runs before each system call of an isolate.

What Python and asyncio need is allowed, some of it only with harmless arguments. What serves
attacks alone ends the process; everything else fails with EPERM. What C libraries try first and do
without (clone3, openat2, calls newer than this table) fails with ENOSYS.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys

from . import linux
from .syscall_numbers import ARCHITECTURES, SYSCALLS

ALLOWED = """
    read write readv writev pread64 pwrite64 close close_range lseek fstat stat lstat newfstatat
    statx access faccessat faccessat2 readlink readlinkat getcwd getdents64 open openat dup dup2
    dup3 munmap mremap brk rt_sigprocmask rt_sigreturn sigaltstack restart_syscall poll ppoll
    select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 recvfrom
    shutdown getsockname getpeername getpid gettid getppid getpgrp getuid geteuid getgid getegid
    getresuid getresgid getgroups uname sysinfo times getrusage getrlimit gettimeofday time
    nanosleep sched_yield futex getrandom rseq set_robust_list set_tid_address exit exit_group
""".split()

ALLOWED_WITH_TMP = """
    mkdir mkdirat unlink unlinkat rmdir rename renameat renameat2 truncate ftruncate fsync
    fdatasync fallocate
""".split()

KILLED = """
    ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp bpf io_uring_setup io_uring_enter
    io_uring_register userfaultfd perf_event_open add_key request_key keyctl unshare setns mount
    umount2 pivot_root chroot mount_setattr open_tree move_mount fsopen fsconfig fsmount fspick
    init_module finit_module delete_module kexec_load kexec_file_load open_by_handle_at
    name_to_handle_at fanotify_init swapon swapoff reboot acct quotactl iopl ioperm modify_ldt
    lookup_dcookie nfsservctl vhangup personality memfd_secret move_pages migrate_pages
""".split()

ABSENT = ["clone3", "openat2"]
"""Answered with ENOSYS: a C library then takes the older call, whose arguments can be seen."""

_PROT_EXEC = 0x4
# normal, random, sequential, willneed, dontneed, free, dontfork, (no)hugepage, (no)dump. Not
# mergeable: shared pages would let one tenant find out by timing what another one holds.
_MADVICE = (0, 1, 2, 3, 4, 8, 10, 14, 15, 16, 17)
_FCNTL = (0, 1, 2, 3, 4, 1030)  # dup, descriptor flags, status flags: no owner, no lease, no lock
_FCNTL_LOCKS = (5, 6, 7, 36, 37, 38)
_IOCTL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_AF_UNIX, _SOL_SOCKET, _SO_TYPE_AND_ERROR = 1, 1, (3, 4)
_SIGXCPU = 24
_STATIC_CLOCKS = 16  # above are the clocks of other processes
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)  # what glibc and musl start a thread with, exactly

# The classic BPF machine: loads, jumps with relative targets, returns.
_LOAD, _RETURN = 0x20, 0x06
_JUMP, _EQUAL, _AT_LEAST, _ANY_BIT = 0x05, 0x15, 0x35, 0x45
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000

Instruction = tuple[int, int, int, int]
Code = list[Instruction]


def is_supported() -> bool:
    """Return whether there is a table for this machine, and a kernel that takes filters."""
    if linux.MACHINE not in SYSCALLS or sys.byteorder != "little":
        return False
    try:
        linux.prctl(linux.PR_SET_SECCOMP, 2, 0)  # a filter at address 0: EFAULT if known
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


def program(*, machine: str = linux.MACHINE, threads: bool, tmp: bool) -> bytes:
    """Return the filter for a machine, in the kernel's form."""
    numbers = SYSCALLS[machine]
    bodies: dict[int, Code] = {}
    for names, body in (
        (ALLOWED, _allow()),
        (ALLOWED_WITH_TMP if tmp else [], _allow()),
        (KILLED, _kill()),
        (ABSENT, _fail(errno.ENOSYS)),
    ):
        bodies.update({numbers[name]: body for name in names if name in numbers})
    checked = _checked_bodies(threads=threads, tmp=tmp)
    bodies.update({numbers[name]: body for name, body in checked.items() if name in numbers})
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        *_kill(),
        (_LOAD, 0, 0, _NUMBER_AT),
        *_when(_AT_LEAST, _X32_BIT, _kill()),
        *_when(_AT_LEAST, max(numbers.values()) + 1, _fail(errno.ENOSYS)),
        *_tree(_intervals(bodies)),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(filter: bytes) -> None:
    """Run the filter before every system call of this process from now on; needs no_new_privs."""
    buffer = ctypes.create_string_buffer(filter, len(filter))
    header = struct.pack("HxxxxxxP", len(filter) // 8, ctypes.addressof(buffer))
    linux.prctl(linux.PR_SET_SECCOMP, 2, ctypes.c_char_p(header))


def _checked_bodies(*, threads: bool, tmp: bool) -> dict[str, Code]:
    """Return the checks of calls that are allowed with some arguments only."""
    no_code = _refuse_bits(2, _PROT_EXEC)
    static_clock = [_load(0), *_when(_AT_LEAST, _STATIC_CLOCKS, _refuse()), *_allow()]
    return {
        "sendto": _only_zero(4, _allow()),  # no address: only to where the socket is connected
        "mmap": no_code,
        "mprotect": no_code,
        "madvise": _only(2, _MADVICE, _allow()),
        "fcntl": _only(1, _FCNTL + (_FCNTL_LOCKS if tmp else ()), _allow()),
        "ioctl": _only(1, _IOCTL, _allow()),
        "socketpair": _only(0, (_AF_UNIX,), _allow()),
        "getsockopt": _only(1, (_SOL_SOCKET,), _only(2, _SO_TYPE_AND_ERROR, _allow())),
        "prlimit64": _only_zero(0, _only_zero(2, _allow())),  # one's own, and only to read
        "sched_getaffinity": _only_zero(0, _allow()),
        "getpgid": _only_zero(0, _allow()),
        "rt_sigaction": [_load(0), *_when(_EQUAL, _SIGXCPU, _refuse()), *_allow()],
        "clock_gettime": static_clock,
        "clock_getres": static_clock,
        "clock_nanosleep": static_clock,
        "clone": _only_exactly(0, _THREAD_FLAGS, _allow()) if threads else _refuse(),
    }


# --- the assembler: every piece of code ends in a return ------------------------------------------


def _allow() -> Code:
    return [(_RETURN, 0, 0, _ALLOW)]


def _kill() -> Code:
    return [(_RETURN, 0, 0, _KILL)]


def _fail(number: int) -> Code:
    return [(_RETURN, 0, 0, _ERRNO | number)]


def _refuse() -> Code:
    return _fail(errno.EPERM)


def _load(argument: int, *, high: bool = False) -> Instruction:
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument + 4 * high


def _when(test: int, value: int, then: Code) -> Code:
    """Return code that runs `then` if the test holds of the loaded value; else what follows."""
    return [(test, 0, len(then), value), *then]


def _only(argument: int, values: tuple[int, ...], then: Code) -> Code:
    """Return code that runs `then` if the argument, a C int, is one of these; else EPERM."""
    tests = [
        (_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)
    ]  # each jumps over the rest and the refusal
    return [_load(argument), *tests, *_refuse(), *then]


def _only_exactly(argument: int, values: tuple[int, ...], then: Code) -> Code:
    """Return code like that of `_only` for an argument of 64 bits."""
    high_is_zero = [_load(argument, high=True), (_EQUAL, 1, 0, 0), *_refuse()]
    return [*high_is_zero, *_only(argument, values, then)]


def _only_zero(argument: int, then: Code) -> Code:
    return _only_exactly(argument, (0,), then)


def _refuse_bits(argument: int, bits: int) -> Code:
    return [_load(argument), *_when(_ANY_BIT, bits, _refuse()), *_allow()]


def _intervals(bodies: dict[int, Code]) -> list[tuple[int, Code]]:
    """Return where the action changes, from number 0 on; EPERM for what is not listed."""
    changes: list[tuple[int, Code]] = []
    for number in range(max(bodies) + 2):
        body = bodies.get(number, _refuse())
        if not changes or changes[-1][1] != body:
            changes.append((number, body))
    return changes


def _tree(intervals: list[tuple[int, Code]]) -> Code:
    """Return a binary search for the interval of the loaded number."""
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    below, above = _tree(intervals[:middle]), _tree(intervals[middle:])
    first = intervals[middle][0]
    if len(below) <= 255:
        return [(_AT_LEAST, len(below), 0, first), *below, *above]
    # The conditional jump reaches 255 instructions, the plain one any number.
    return [(_AT_LEAST, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above]
