"""Filesystem: the few system calls that durability rests on, so that tests can make them fail.

Every name that appears is synced with its directory, and every byte before its name: a visible file
is whole. An error leaves open whether the call took effect; a handle whose sync failed must never
be used again, since the kernel may call lost pages clean from then on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..errors import Unavailable, WorkflowsError
from . import permissions
from .base import AlreadyExists, NotFound

TEMPORARY = ".tmp-"
"""Names that begin like this are half-made files; no listing shows them."""


class Disk:
    """The operating system's calls, as they are. Raises OSError."""

    def __init__(self) -> None:
        # Where the file system has no files without a name: their temporary names, by handle.
        self._temporary: dict[int, str] = {}

    def open_unnamed(self, directory: str) -> int:
        """Open a new file for reading and writing that no listing shows until it is linked."""
        try:
            return self.open_tmpfile(directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
        path = os.path.join(directory, f"{TEMPORARY}{secrets.token_hex(8)}")
        handle = self.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        self._temporary[handle] = path
        return handle

    def open_tmpfile(self, directory: str) -> int:
        """Open a file without a name, where the file system supports it."""
        if not hasattr(os, "O_TMPFILE"):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), directory)
        return self.open(directory, os.O_TMPFILE | os.O_RDWR)

    def open(self, path: str, flags: int) -> int:
        """Open a file; one that is created is for this user alone, or for a group (see
        `permissions`)."""
        handle = os.open(path, flags | os.O_CLOEXEC, permissions.FILE)
        unnamed = getattr(os, "O_TMPFILE", 0)
        is_unnamed = bool(unnamed) and flags & unnamed == unnamed
        if is_unnamed or flags & os.O_CREAT:
            folder = path if is_unnamed else os.path.dirname(path)
            if permissions.is_shared(folder):
                os.fchmod(handle, permissions.SHARED_FILE)
        return handle

    def close(self, handle: int) -> None:
        """Close the handle; a file that was never linked is removed."""
        temporary = self._temporary.pop(handle, None)
        os.close(handle)
        if temporary is not None:
            os.unlink(temporary)

    def pwrite(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write at an offset; return how many bytes were written."""
        return os.pwrite(handle, data, offset)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Return part of a file; fewer bytes only at its end."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, length, offset)
        finally:
            os.close(handle)

    def make_directory(self, path: str) -> None:
        """Make the directory and its parents, durably, with permissions as `open` gives."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, permissions.FOLDER)
            if permissions.is_shared(parent):
                os.chmod(path, permissions.SHARED_FOLDER)
        self.sync_directory(parent)

    def datasync(self, handle: int) -> None:
        """Return when the file's bytes and its size are on the medium."""
        _flush(handle, _datasync)

    def sync_directory(self, path: str) -> None:
        """Return when the directory's names are on the medium."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _flush(handle, os.fsync)
        finally:
            os.close(handle)

    def allocate(self, handle: int, offset: int, length: int) -> None:
        """Reserve blocks, which read as zeros."""
        if not hasattr(os, "posix_fallocate"):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.posix_fallocate(handle, offset, length)

    def truncate(self, handle: int, length: int) -> None:
        """Shorten the file, or extend it by zeros."""
        os.ftruncate(handle, length)

    def link(self, handle: int, path: str) -> None:
        """Give an open file a name; raises FileExistsError where the name is in use."""
        temporary = self._temporary.get(handle)
        if temporary is not None:
            os.link(temporary, path)
            del self._temporary[handle]
            os.unlink(temporary)
            return
        # A directory handle (unused: the path is absolute) is what makes Python follow the link.
        os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)

    def replace(self, old: str, new: str) -> None:
        """Rename over any file of that name."""
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def exists(self, path: str) -> bool:
        """Return whether the name exists; never cached."""
        try:
            os.stat(path)
        except FileNotFoundError:
            return False
        return True

    def has_name(self, handle: int) -> bool:
        """Return whether an open file still has a name."""
        return os.fstat(handle).st_nlink > 0


_datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
# On macOS, where fsync leaves the bytes in the drive's cache.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def _flush(handle: int, sync: Callable[[int], None]) -> None:
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(handle, _FULL_SYNC)
        except OSError as error:
            if error.errno == errno.EIO:
                raise
        else:
            return
        # A file system that has no such thing, such as a network's.
    sync(handle)


def write_all(disk: Disk, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of the bytes, in as many writes as it takes."""
    taken = disk.pwrite(handle, data, offset)
    if taken == len(data):
        return
    with memoryview(data) as view:
        while taken < len(view):
            more = disk.pwrite(handle, view[taken:], offset + taken)
            if more <= 0:
                raise OSError(errno.ENOSPC, "the disk took no more bytes")
            taken += more


def open_unnamed(disk: Disk, directory: Path) -> int:
    """Open a new file in a directory that no listing shows until it is linked."""
    disk.make_directory(str(directory))
    return disk.open_unnamed(str(directory))


def create_file(disk: Disk, path: Path, data: bytes) -> None:
    """Create a file, whole when it becomes visible, durable on return. Raises FileExistsError."""
    handle = open_unnamed(disk, path.parent)
    try:
        write_all(disk, handle, data, 0)
        disk.datasync(handle)
        disk.link(handle, str(path))
    finally:
        disk.close(handle)
    disk.sync_directory(str(path.parent))


def replace_file(disk: Disk, path: Path, data: bytes, *, token: str) -> None:
    """Replace a file's bytes atomically, durable on return."""
    disk.make_directory(str(path.parent))
    temporary = path.parent / f"{TEMPORARY}{token}"
    handle = disk.open(str(temporary), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        try:
            write_all(disk, handle, data, 0)
            disk.datasync(handle)
        finally:
            disk.close(handle)
        disk.replace(str(temporary), str(path))
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(str(temporary))
        raise
    disk.sync_directory(str(path.parent))


def explain(error: OSError, path: str) -> WorkflowsError:
    """Return the error for a failed call, with what the caller can do about it."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path} does not exist")
    if isinstance(error, FileExistsError):
        return AlreadyExists(f"{path} exists")
    advice = "check the disk and its mount, then open the log again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space; a platform goes on by itself then"
    elif error.errno == errno.EROFS:
        advice = "mount it for writing; a platform goes on by itself then"
    elif isinstance(error, PermissionError):
        advice = "give this user access, then open the log again"
    return Unavailable(f"{path}: {error.strerror or error}: {advice}", path=path, errno=error.errno)
