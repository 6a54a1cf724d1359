"""Permissions: which users of this host may read a log on a disk.

Folders of a log are made 0700 and its files 0600, whatever the umask. Where a folder carries the
set-group-id bit and lets its group read, what is made in it is open to that group too (02750 and
0640), and never to others: so the root alone decides, for every process that writes below it.
"""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

from ..errors import InvalidError, Unavailable

FOLDER, FILE = 0o700, 0o600
SHARED_FOLDER, SHARED_FILE = 0o2750, 0o640


def is_shared(folder: str) -> bool:
    """Return whether new files in the folder are open to its group."""
    mode = os.stat(folder or ".").st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IRGRP)


def share(root: str, group: str) -> None:
    """Open what will be written below a root to a group of the host; buckets are left as they are.

    Raises InvalidError for a group that does not exist, Unavailable where this user may not.
    """
    if "://" in root:
        return
    try:
        number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidError(
            f"log_group={group!r} is no group of this host: name one that `getent group` lists"
        ) from None
    path = Path(root)
    try:
        path.mkdir(FOLDER, parents=True, exist_ok=True)
        if path.stat().st_gid != number:
            # What another group was let write was meant for that one.
            path.chmod(path.stat().st_mode & ~0o020)
            os.chown(path, -1, number)
        path.chmod((path.stat().st_mode | SHARED_FOLDER) & ~0o007)
    except OSError as error:
        raise Unavailable(
            f"{root} cannot be opened to the group {group}: {error.strerror}: have the platform's"
            " user be in the group and own the folder"
        ) from None


def exposure(root: str) -> str | None:
    """Return what other users of the host may do with a log on a disk, as a sentence; None:
    nothing."""
    if "://" in root:
        return None
    top = Path(root)
    try:
        replaces = _who_replaces(top)
        if replaces is not None:
            return replaces
        mode = top.stat().st_mode
        if mode & 0o001:
            for path in sorted(top.iterdir()):
                if path.is_dir() and not path.is_symlink() and path.stat().st_mode & 0o005:
                    return (
                        f"every user of this host may read what lies in {path} from earlier"
                        " days: what is written from now on is for this user alone (log_group opens"
                        f" it to a group); chmod -R o-rwx {root} closes the rest"
                    )
    except OSError:
        return None
    return None


def _who_replaces(top: Path) -> str | None:
    """Return the other users that may replace what lies in a root, and so run code."""
    for folder in [top, *top.resolve().parents]:
        found = folder.stat()
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return (
                f"every user of this host may replace what lies in {folder}: take that right away"
                f" (chmod o-w {folder})"
            )
        if not _is_trusted(found.st_uid):
            return (
                f"the user {found.st_uid} owns {folder} and may replace what lies in it: have the"
                " platform's user own it"
            )
    found = top.stat()
    if found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid()):
        return (
            f"every member of the group {found.st_gid} may replace what lies in {top}: take that"
            f" right away (chmod g-w {top})"
        )
    for path in sorted(top.iterdir()):
        if not _is_trusted(path.lstat().st_uid):
            return (
                f"{path} belongs to another user, who may replace what lies in it: have the"
                " platform's user own it"
            )
    return None


def _is_trusted(uid: int) -> bool:
    """Return whether the user is this one, or root, which can read everything anyway."""
    return uid in (0, os.geteuid())
