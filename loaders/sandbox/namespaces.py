"""Namespaces: a zygote's own namespaces, with a root directory of what isolates may read.

Entered once by the zygote and inherited by all that it forks. Needs CAP_SYS_ADMIN or, without it, a
kernel that lets ordinary users make user namespaces. Network, System V IPC and the host's name are
cut off as well. Nothing in the new root can be written but the private `/tmp` that an isolate may
get.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket

from . import linux
from .readable_paths import Readable

TMP = "/scratch/tmp"
"""Where the private directory is mounted; `/tmp` leads to it, and TMPDIR names it."""
TMP_RULE = "/scratch"
"""The directory above it, for rules that are made before it is mounted."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_HARMLESS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_OLD = "/.old"
# Of the flags that statvfs shows, those that a remount must repeat where the host has set them.
_KEPT_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | 0x400 | 0x800 | 0x200000
_TMP_INODES_A_MB = 256


def enter(readable: Readable) -> None:
    """Enter the namespaces for good; may raise OSError half-way, so try it in a child first."""
    _unshare()
    socket.sethostname("isolate")
    linux.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _make_root()
    hidden = set(readable.hidden)
    for path in sorted({*readable.stdlib, *readable.others, *hidden}):
        if path in hidden:
            linux.mount("hidden", path, "tmpfs", _HARMLESS, "size=64k,mode=755")
        else:
            _bind(path)
    os.makedirs(TMP)
    with contextlib.suppress(FileExistsError):  # where something readable lies below /tmp
        os.symlink(TMP, "/tmp")
    linux.umount(_OLD, _MNT_DETACH)
    os.rmdir(_OLD)
    for path in ("/", *hidden):
        linux.mount(None, path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _HARMLESS)


def _unshare() -> None:
    spaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWNET
    uid, gid = os.geteuid(), os.getegid()
    try:
        linux.unshare(spaces)
    except PermissionError:
        if uid == 0:
            # In a user namespace made by root there would be nobody else to become.
            raise
        linux.unshare(spaces | _NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _make_root() -> None:
    """Make a new, empty root, with the old one below `_OLD`."""
    base = next(path for path in ("/tmp", "/run", "/var/tmp", "/dev/shm") if os.path.isdir(path))
    linux.mount("jail", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir(base + _OLD)
    os.chdir(base)
    linux.syscall(
        "pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(os.fsencode(_OLD.lstrip("/")))
    )
    os.chdir("/")


def _bind(path: str) -> None:
    source = _OLD + path
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))
    linux.mount(source, path, None, _MS_BIND)
    flags = os.statvfs(path).f_flag & _KEPT_FLAGS
    # ST_RELATIME is 0x1000 to statvfs and 0x200000 to mount; a remount keeps it by itself.
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | flags
    linux.mount(None, path, None, flags)


def mount_tmp(size_bytes: int) -> None:
    """Give this process, in a mount namespace of its own, a private and bounded `/tmp`."""
    linux.unshare(_NEWNS)
    inodes = max(16, (size_bytes >> 20) * _TMP_INODES_A_MB)
    options = f"size={size_bytes},nr_inodes={inodes},mode=777"
    linux.mount("tmp", TMP, "tmpfs", _HARMLESS, options)
