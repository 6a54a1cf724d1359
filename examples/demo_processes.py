"""Processes of the demo: which of the processes under this one owns a tenant."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent's pid, title) of every process, as far as this user may look."""
    if not Path("/proc/self/stat").exists():
        yield from _listed()
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold spaces; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            yield int(entry.name), parent, title


def _listed() -> Iterator[tuple[int, int, str]]:
    """The same where there is no /proc."""
    command = ["ps", "-axww", "-o", "pid=,ppid=,command="]
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        pid, parent, *title = line.split(maxsplit=2)
        yield int(pid), int(parent), " ".join(title)


def actor_of(tenant: str) -> int | None:
    """The process of a tenant's actor, by its title; None when the tenant is asleep."""
    found = {pid: (parent, title) for pid, parent, title in processes()}
    for pid, (parent, title) in found.items():
        if "TenantActor" in title and tenant in title:
            while parent in found and parent != os.getpid():
                parent = found[parent][0]
            if parent == os.getpid():
                return pid
    return None
