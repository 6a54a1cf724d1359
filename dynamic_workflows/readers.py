"""Readers: those that a platform keeps open, one for itself and one for each tenant that asks.

A tenant's reader holds a process, so only so many are kept: the one used longest ago is closed
when another tenant asks. One that is in use is never closed, whatever the number.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .eventlog.errors import PlatformClosed

if TYPE_CHECKING:
    from .eventlog.query.reader import Reader


class KeptReaders:
    """Opens readers as they are needed; may be used from any thread."""

    def __init__(self, open_reader: Callable[[str | None], Reader], *, tenants_max: int) -> None:
        self._open_reader = open_reader
        self._tenants_max = tenants_max
        self._lock = threading.Lock()
        self._readers: OrderedDict[str | None, Reader] = OrderedDict()
        self._users: dict[str | None, int] = {}
        self._is_closed = False

    @contextmanager
    def using(self, tenant_id: str | None) -> Iterator[Reader]:
        """A reader that stays open for the length of the block."""
        with self._lock:
            if self._is_closed:
                raise PlatformClosed("the platform was closed: connect again")
            reader = self._readers.get(tenant_id)
            if reader is None:
                reader = self._readers[tenant_id] = self._open_reader(tenant_id)
            self._readers.move_to_end(tenant_id)
            self._users[tenant_id] = self._users.get(tenant_id, 0) + 1
        try:
            yield reader
        finally:
            with self._lock:
                self._users[tenant_id] -= 1
                idle = self._take_idle()
            for one in idle:
                one.close()

    def _take_idle(self) -> list[Reader]:
        """The readers above the number that nobody uses, oldest first."""
        tenants = [one for one in self._readers if one is not None]
        over = len(tenants) - self._tenants_max
        idle = [one for one in tenants if not self._users[one]][: max(over, 0)]
        for tenant_id in idle:
            del self._users[tenant_id]
        return [self._readers.pop(tenant_id) for tenant_id in idle]

    def close(self) -> None:
        """Close all of them: what is under way is stopped."""
        with self._lock:
            self._is_closed = True
            readers, self._readers = list(self._readers.values()), OrderedDict()
        for reader in readers:
            reader.interrupt()
            reader.close()
