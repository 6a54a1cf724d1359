"""Processes of the demo: which of the processes under this one owns a tenant."""

from __future__ import annotations

import os
from pathlib import Path


def children() -> dict[int, list[int]]:
    """Every process's children, as far as this user may look."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold spaces; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            found.setdefault(parent, []).append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """The processes that this one started, and those that they started."""
    tree, found, rest = children(), [], [pid]
    while rest:
        below = tree.get(rest.pop(), [])
        found += below
        rest += below
    return found


def actor_of(tenant: str) -> int | None:
    """The process of a tenant's actor, by its title; None when the tenant is asleep."""
    for pid in descendants(os.getpid()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "TenantActor" in title and tenant in title:
            return pid
    return None
