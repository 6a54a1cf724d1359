"""Runtime folder: where an embedded Ray keeps its sockets, its logs and its token.

    <temporary>/dw-XXXXXXXX/        0700: nobody else gets in
        lock                        held by the driver and its reaper while they live
        token                       0600
        ray/                        Ray makes this one, and all below it, open to everybody

A reaper beside the driver ends what a killed driver leaves behind, and removes the folder. Where
both were killed at once, the reaper of the next platform of this user does it: a lock that nobody
holds says so.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from ..rpc import fork_guard
from . import orphan_reaper

# Below the temporary folder come `/dw-XXXXXXXX/ray/session_<26>_<pid>/sockets/plasma_store`, and
# the name of a socket may have no more than 107 characters.
_TEMPORARY_CHARACTERS_MAX = 107 - len("/dw-XXXXXXXX/ray/session_/sockets/plasma_store") - 26 - 8
_REAPER_S = 30.0


class RuntimeFolder:
    """A private folder with a reaper, until `remove`."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=orphan_reaper.PREFIX, dir=_short_temporary()))
        # Python makes it so; a file system that knows no modes is noticed here.
        if self.path.stat().st_mode & 0o077:
            self.path.rmdir()
            raise OSError(
                f"{self.path} would be open to other users: set TMPDIR to a folder on a file"
                " system that keeps permissions"
            )
        self._lock = _locked(self.path)
        self._reaper = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(orphan_reaper.__file__)),
                *(str(self.path), str(os.getpid())),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._lock],
        )
        self._reaper.wait()  # it goes on as nobody's child
        fork_guard.on_fork(self._let_go)

    @property
    def ray(self) -> str:
        """The folder that Ray is given."""
        return str(self.path / "ray")

    @property
    def token(self) -> Path:
        """Where its token lies."""
        return self.path / "token"

    def remove(self) -> None:
        """End what is left of the cluster and remove the folder; waits for it, within limits."""
        assert self._reaper.stdin is not None
        assert self._reaper.stdout is not None
        fork_guard.no_longer(self._let_go)
        self._reaper.stdin.close()
        select.select([self._reaper.stdout], [], [], _REAPER_S)
        self._reaper.stdout.close()
        os.close(self._lock)

    def _let_go(self) -> None:
        """In a forked child: the reaper waits for the parent's end, not for the child's."""
        assert self._reaper.stdin is not None
        assert self._reaper.stdout is not None
        self._reaper.stdin.close()
        self._reaper.stdout.close()
        os.close(self._lock)
        # The child has the logs of the cluster open, and is not of it.
        note_guest(str(self.path))


def note_guest(folder: str) -> None:
    """Tell the folder's reaper to spare this process."""
    guests = Path(folder) / orphan_reaper.GUESTS
    try:
        guests.mkdir(exist_ok=True)
        (guests / str(os.getpid())).touch()
    except FileNotFoundError:
        pass  # the folder has gone, and its reaper


def _locked(folder: Path) -> int:
    """The folder's lock, held from the moment that it can be seen."""
    new = folder / "lock.new"
    handle = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    new.rename(folder / orphan_reaper.LOCK)
    return handle


def _short_temporary() -> str:
    temporary = tempfile.gettempdir()
    return temporary if len(temporary) <= _TEMPORARY_CHARACTERS_MAX else "/tmp"
