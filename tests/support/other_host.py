"""Another host: runs a program where the kernel and Python offer nothing that Linux alone has.

`python tests/support/other_host.py ARGUMENTS OF PYTHON`. The kernel refuses the calls (a filter
answers ENOSYS, for this process and all below it), /proc is empty where that can be arranged, and
Python lacks the names, as on macOS or a BSD. What such a system does otherwise than Linux in calls
that both have is not shown by this.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import selectors
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
from types import ModuleType
from typing import Any

from paths import ROOT, SUPPORT

SYSTEM = "elsewhere1"
IS_HERE = os.environ.get("OTHER_HOST") == "1"
_NAMES: dict[ModuleType, str] = {
    os: "memfd_create pidfd_open pipe2 posix_fallocate fdatasync O_TMPFILE O_PATH eventfd "
    "sched_getaffinity sched_setaffinity setresuid setresgid getresuid getresgid "
    "MFD_CLOEXEC MFD_ALLOW_SEALING P_PIDFD waitid copy_file_range splice",
    signal: "pidfd_send_signal sigtimedwait sigwaitinfo",
    select: "epoll",
    selectors: "EpollSelector DevpollSelector",
    socket: "SOCK_CLOEXEC SOCK_NONBLOCK AF_NETLINK AF_VSOCK",
}
_OF_LIBC = ("prctl", "unshare", "syscall", "capset", "memfd_create", "pivot_root")


def forget() -> None:
    """This interpreter, and the zygotes that it starts, lose the names of what Linux alone has."""
    if sys.platform == SYSTEM:
        return
    sysconfig.get_config_vars()  # Python finds its own settings by the system's true name
    for module, names in _NAMES.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    setattr(tempfile, "_O_TMPFILE_WORKS", False)  # noqa: B010 - of the time when it did
    setattr(selectors, "DefaultSelector", selectors.PollSelector)  # noqa: B010 - mypy knows better
    look_up = ctypes.CDLL.__getattr__

    def look_up_less(library: ctypes.CDLL, name: str) -> Any:
        if name in _OF_LIBC:
            raise AttributeError(name)
        return look_up(library, name)

    setattr(ctypes.CDLL, "__getattr__", look_up_less)  # noqa: B010
    sys.platform = SYSTEM


def spread() -> None:
    """Zygotes forget as well, before they import anything of ours."""
    from dynamic_workflows.loaders.isolates import zygote_client

    before = "from dynamic_workflows"
    lesson = f"sys.path.append({str(SUPPORT)!r}); import other_host; other_host.forget(); "
    if lesson not in zygote_client._BOOT:
        assert before in zygote_client._BOOT
        zygote_client._BOOT = zygote_client._BOOT.replace(before, lesson + before, 1)


def _refuse() -> None:
    """Have the kernel refuse, to this process and all that it starts."""
    from dynamic_workflows.loaders.sandbox import linux, seccomp

    x86, arm = linux.MACHINE == "x86_64", linux.MACHINE == "aarch64"
    assert x86 or arm
    absent = [319, 291, 213, 290, 157] if x86 else [279, 20, 19, 167]
    absent += [434, 424, 436]  # pidfd_open, pidfd_send_signal, close_range
    clock_gettime, socketpair = (228, 53) if x86 else (113, 199)
    allow = (0x06, 0, 0, 0x7FFF0000)
    code = [(0x20, 0, 0, 0)]
    for number in absent:
        code += [(0x15, 0, 1, number), _fail(errno.ENOSYS)]
    # No clocks of other processes; no SOCK_SEQPACKET, which alone of the usual kinds has this bit.
    code += [(0x15, 0, 4, clock_gettime), (0x20, 0, 0, 16), (0x35, 0, 1, 16)]
    code += [_fail(errno.EINVAL), allow]
    code += [(0x15, 0, 4, socketpair), (0x20, 0, 0, 24), (0x45, 0, 1, 4)]
    code += [_fail(errno.EPROTONOSUPPORT), allow, allow]
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(b"".join(struct.pack("=HBBI", *step) for step in code))


def _fail(number: int) -> tuple[int, int, int, int]:
    return (0x06, 0, 0, 0x50000 | number)


def _empty_proc() -> None:
    """Hide what /proc tells, where this user may."""
    from dynamic_workflows.loaders.sandbox import linux

    newns, rec_private = 0x20000, 0x4000 | 0x40000
    try:
        linux.unshare(newns)
        linux.mount(None, "/", None, rec_private)
        linux.mount("none", "/proc", "tmpfs", 0, "size=4k")
    except OSError as error:
        print(f"other_host: /proc stays: {error}", file=sys.stderr)


if IS_HERE:
    forget()

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    _empty_proc()
    _refuse()
    os.environ["OTHER_HOST"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
