"""WalFile: one WAL file on a local disk, open for writing, with blocks reserved ahead."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from ..store.filesystem import Disk, write_all

# Syncing data into reserved blocks is cheaper than letting the file grow: its size need not change.
ALLOCATE_BYTES_MIN = 64 * 1024
ALLOCATE_BYTES_MAX = 4 * 1024 * 1024


class WalFile:
    """One WAL file that is open for writing. Blocks are reserved ahead: syncs are cheaper then."""

    def __init__(self, disk: Disk, directory: Path, number: int, handle: int) -> None:
        self.disk = disk
        self.number = number
        self.path = str(directory / f"{number:020d}")
        self.next_path = str(directory / f"{number + 1:020d}")
        self.handle = handle
        self.offset = 0
        self.synced = 0
        self.allocated = 0
        self.hash = hashlib.sha256()
        self.has_name = False

    def write(self, data: bytes | bytearray) -> None:
        """Append bytes; raises OSError."""
        end = self.offset + len(data)
        if end > self.allocated >= 0:
            more = min(max(self.offset, ALLOCATE_BYTES_MIN), ALLOCATE_BYTES_MAX)
            length = max(more, end - self.allocated)
            try:
                self.disk.allocate(self.handle, self.allocated, length)
                self.allocated += length
            except OSError:
                self.allocated = -1  # full, or a file system without it: go on without
        write_all(self.disk, self.handle, data, self.offset)
        self.hash.update(data)
        self.offset = end

    def is_fenced(self) -> bool:
        """Return whether a newer owner exists. The order of the two checks matters.

        A newer owner creates the next name. It may later remove it, but only after this file's own
        name. So a next name that is missing because it was removed shows in the second question.
        """
        return self.disk.exists(self.next_path) or not self.disk.has_name(self.handle)

    def close(self) -> None:
        """Release the reserved blocks and close the file."""
        with contextlib.suppress(OSError):
            if self.allocated != 0:
                self.disk.truncate(self.handle, self.offset)
        with contextlib.suppress(OSError):
            self.disk.close(self.handle)
