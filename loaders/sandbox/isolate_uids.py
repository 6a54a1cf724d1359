"""Isolate uids: where the supervisor is root, a user and group id of its own for each isolate.

The id is the first of a range plus the process id, which no two live processes of a host share; so
no allocation is needed. The sandbox does not depend on it: it still keeps tenants apart if another
wall should fail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FIRST = 2_010_000_000
"""Of the range unless the deployment names another: above what directory services give to people,
below what systemd keeps for itself."""
COUNT = 1 << 22
"""Of the range: as many as a kernel has numbers of processes, at most."""
_LOWEST = 1 << 16
FIRST_MAX = (1 << 31) - COUNT


def why_not(first: int) -> str | None:
    """Return why isolates cannot have the user ids from this one on; None: they can."""
    last = first + COUNT - 1
    if not _LOWEST <= first <= FIRST_MAX:
        return f"they have to begin between {_LOWEST} and {FIRST_MAX}"
    for kind in ("uid", "gid"):
        if not _has(kind, first, last):
            return f"this user namespace has no {kind}s from {first} to {last}"
    for path, start, end in (*_taken_singly(), *_taken_in_ranges()):
        if start <= last and first < end:
            return f"{path} gives {start} to another user"
    return None


def exists(number: int) -> bool:
    """Return whether this user namespace has a user and a group of this number."""
    return all(_has(kind, number, number) for kind in ("uid", "gid"))


def _has(kind: str, first: int, last: int) -> bool:
    return any(start <= first and last < end for start, end in _mapped(kind))


def _mapped(kind: str) -> Iterator[tuple[int, int]]:
    for line in _lines(f"/proc/self/{kind}_map"):
        start, _, count = line.split()
        yield int(start), int(start) + int(count)


def _taken_singly() -> Iterator[tuple[str, int, int]]:
    for path in ("/etc/passwd", "/etc/group"):
        for line in _lines(path):
            with contextlib.suppress(ValueError, IndexError):
                number = int(line.split(":")[2])
                yield path, number, number + 1


def _taken_in_ranges() -> Iterator[tuple[str, int, int]]:
    for path in ("/etc/subuid", "/etc/subgid"):
        for line in _lines(path):
            with contextlib.suppress(ValueError):
                _, start, count = line.split(":")
                yield path, int(start), int(start) + int(count)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
