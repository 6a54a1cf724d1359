"""Embedded memory: how much of Ray's `memory` an embedded Ray offers, for how many tenants.

A tenant actor declares what it takes at all its limits at once, and hardly any ever does. On a
cluster that is what Ray has to go by. A machine of one's own would hold a handful of tenants so:
here Ray is told of more memory than there is, so that as many find room as usually fit.
"""

from __future__ import annotations

import os
from pathlib import Path

MIB = 1024 * 1024
USUAL_TENANT_MEMORY = 100 * MIB
"""Bytes that a tenant actor usually takes.

Measured: 68 MiB of its own, and 4 MiB for its zygote and for each of its isolates.
"""
_SHARE = 0.7
"""Of the machine's memory, for actors; the rest is Ray's, the driver's and everybody else's."""
_TENANTS_MIN = 4
_CGROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def tenants_that_fit(total: int, reserved: int) -> int:
    """How many tenants usually fit into a machine of `total` bytes, `reserved` ones left out."""
    usable = int(total * _SHARE) - reserved
    return max(_TENANTS_MIN, usable // USUAL_TENANT_MEMORY)


def offered(tenant_memory: int, *, supervisors: int, object_store: int) -> int:
    """The bytes of `memory` that an embedded Ray is to offer, where each tenant actor declares
    `tenant_memory` and the loader and the timer declare `supervisors` together."""
    tenants = tenants_that_fit(total_memory(), supervisors + object_store)
    return supervisors + tenants * tenant_memory


def total_memory() -> int:
    """Bytes of memory that this machine has, or this container may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _CGROUPS:
        try:
            limit = file.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total
