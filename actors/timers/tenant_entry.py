"""Tenant entry: what is known of one tenant from outside it: open, or asleep until some time.

The owner of a tenant's log says so, under the epoch of its ownership: first that the tenant is
open, at last until when it sleeps. Such a message may be lost, come twice or come late. So the
entry is the newest of all messages, and newest is by (epoch, open before asleep), not by arrival.
Taking the newest is commutative, associative and idempotent: no order of messages can bring an
older one back.
"""

from __future__ import annotations

from typing import NamedTuple

OPEN = -1
"""In place of a due time: the tenant is open."""


class TenantEntry(NamedTuple):
    """The last message of a tenant's owner, with its epoch."""

    epoch: int
    due_us: int | None
    """When a sleeping tenant has to be awake (µs); None: never; OPEN: it is not asleep."""

    @property
    def is_open(self) -> bool:
        """Whether the owner may be running, or was when it ended."""
        return self.due_us == OPEN

    def is_newer_than(self, other: TenantEntry | None) -> bool:
        """Return whether this is newer than `other`; an equal entry is not."""
        if other is None:
            return True
        return (self.epoch, not self.is_open) > (other.epoch, not other.is_open)
