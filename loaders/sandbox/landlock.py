"""Landlock: restricts files, TCP, abstract sockets and signals by the kernel, without privilege.

A ruleset denies everything it handles but what its rules allow. What an older kernel cannot handle,
and what Landlock never handles (chmod, utime, UDP, stat), is left to seccomp and to namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

from . import linux

_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
# By the version that brought them: the number of file rights, which are the bits from 0 on.
_FILE_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
_TCP_RIGHTS = 0b11  # bind, connect: from version 4
_SCOPES = 0b11  # abstract unix sockets, signals: from version 6
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _READ_FILE | _READ_DIR


def abi() -> int:
    """Return the version of Landlock that this kernel enforces; 0: none."""
    try:
        return linux.syscall("landlock_create_ruleset", 0, 0, _VERSION_FLAG)
    except OSError:
        return 0


class Ruleset:
    """A set of allowed accesses, built once and enforced on any number of forked processes."""

    def __init__(self, *, abi: int) -> None:
        rights = max(count for version, count in _FILE_RIGHTS if version <= abi)
        self._handled = (1 << rights) - 1
        self.fd = linux.move_up(self._create(abi))

    def _create(self, abi: int) -> int:
        tcp = _TCP_RIGHTS if abi >= 4 else 0
        for scopes in (_SCOPES, 1, 0) if abi >= 6 else (0,):
            attributes = struct.pack("QQQ", self._handled, tcp, scopes)
            size = 24 if abi >= 6 else 16 if abi >= 4 else 8
            try:
                return linux.syscall(
                    "landlock_create_ruleset", ctypes.c_char_p(attributes), size, 0
                )
            except OSError as error:
                # Some kernels claim version 6 without all of its scopes; seccomp covers those.
                if error.errno != errno.EINVAL or not scopes:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def allow_reading(self, paths: Iterable[str]) -> None:
        """Allow reading of these files, and of all below these directories."""
        for path in paths:
            self._allow(path, _READ)

    def allow_writing(self, path: str) -> None:
        """Allow all operations below this directory except devices and execution."""
        make_devices = 1 << 6 | 1 << 11
        self._allow(path, self._handled & ~(_EXECUTE | make_devices | _IOCTL_DEV))

    def _allow(self, path: str, rights: int) -> None:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= _OF_FILES
            rule = struct.pack("=Qi", rights & self._handled, fd)
            linux.syscall(
                "landlock_add_rule", self.fd, _RULE_PATH_BENEATH, ctypes.c_char_p(rule), 0
            )
        finally:
            os.close(fd)

    def restrict_self(self) -> None:
        """Enforce the rules on this process for good; needs no_new_privs. Closes the ruleset."""
        linux.syscall("landlock_restrict_self", self.fd, 0)
        os.close(self.fd)
