"""Ray session: this process's connection to Ray, shared by its platforms.

An embedded Ray starts with the first of them and ends with the last. A process may join the
embedded Ray of another process of the same machine instead, or a cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..claims import Claim, NumberedClaim, started
from ..rpc import fork_guard
from . import ray_connection
from .embedded_ray import RayThread
from .ray_token import RayToken
from .runtime_folder import note_guest


class RaySession:
    """The connection; made by `begin`."""

    _current: RaySession | None = None
    _connecting: asyncio.Future[RaySession] | None = None

    def __init__(self, *, is_elsewhere: bool, is_embedded: bool, is_guest: bool = False) -> None:
        self.is_elsewhere = is_elsewhere
        """Whether actors may run on other machines."""
        self.is_embedded = is_embedded
        """Whether the platforms end with their drivers."""
        self.is_guest = is_guest
        """Whether another process's embedded Ray was joined: it ends with that one."""
        self.is_lost = False
        """Whether Ray has ended under it."""
        self.origin = fork_guard.OwningProcess()
        self._users = 0
        self._platforms: dict[tuple[str, str], int] = {}
        self.claims: dict[tuple[str, str], NumberedClaim] = {}
        """By platform: what was laid down for it."""
        self._ray: RayThread | None = None
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def of(cls, platform: tuple[str, str]) -> RaySession | None:
        """The session of this process that has the platform, if there is one."""
        current = cls.living()
        return current if current is not None and platform in current._platforms else None

    @classmethod
    def living(cls) -> RaySession | None:
        """The session of this process, if it has one; PlatformBusy in a forked child."""
        current = cls._current
        if current is None:
            return None
        current.origin.check()
        return current if not current.is_lost and ray_connection.is_connected() else None

    @classmethod
    async def begin(
        cls,
        address: str | None,
        *,
        dashboard: bool = False,
        memory: int | None = None,
        host: NumberedClaim | None = None,
    ) -> RaySession:
        """The connection that this process has, or a new one; raises Unavailable.

        `memory`: bytes that an embedded Ray is to offer; None: what it finds. `host`: the claim of
        another process's embedded Ray, to be joined.
        """
        # Two platforms that are entered together share what the first of them starts.
        while cls._connecting is not None:
            await asyncio.wait({cls._connecting})
        session = cls.living()
        if session is None:
            connecting = asyncio.ensure_future(cls._connect(address, dashboard, memory, host))
            cls._connecting = connecting
            try:
                session = cls._current = await connecting
            finally:
                cls._connecting = None
        session._users += 1
        return session

    @classmethod
    async def _connect(
        cls,
        address: str | None,
        dashboard: bool,
        memory: int | None,
        host: NumberedClaim | None,
    ) -> RaySession:
        if ray_connection.is_connected():
            return cls(is_elsewhere=True, is_embedded=address is None and host is None)
        claim = None if host is None else host.claim
        session = cls(
            is_elsewhere=address is not None,
            is_embedded=address is None and claim is None,
            is_guest=claim is not None,
        )
        if claim is None:
            session._ray = RayThread(
                partial(_enter, address, dashboard, memory),
                ray_connection.disconnect,
                has_folder=address is None,
            )
        else:
            guest = JoinedRay(claim)
            session._ray = RayThread(guest.join, guest.leave, has_folder=False)
        await session._ray.start()
        session._watch(
            ray_connection.control_pid() if claim is None else claim.ray_pid or claim.pid
        )
        return session

    def _watch(self, pid: int | None) -> None:
        """Notice the end of an embedded Ray by that of its control service."""
        began = None if pid is None else started(pid)
        if pid is not None and self._ray is not None and (self.is_embedded or self.is_guest):
            self._ray.watch(lambda: started(pid) == began, self._lost)

    @property
    def folder(self) -> str | None:
        """Of the embedded Ray."""
        return None if self._ray is None else self._ray.folder

    async def warn_of_listeners(self) -> None:
        """Log what of an embedded Ray can be reached over the network."""
        if self._ray is not None:
            await asyncio.to_thread(self._ray.warn_of_listeners)

    def listen(self, lost: Callable[[], None]) -> None:
        """Call back when Ray has ended under it."""
        self._listeners.append(lost)

    def unlisten(self, lost: Callable[[], None]) -> None:
        """No more."""
        if lost in self._listeners:
            self._listeners.remove(lost)

    def _lost(self) -> None:
        self.is_lost = True
        if RaySession._current is self:
            RaySession._current = None
        for listener in self._listeners:
            listener()

    def use(self, platform: tuple[str, str]) -> None:
        """One more driver of a platform (prefix, namespace)."""
        self._platforms[platform] = self._platforms.get(platform, 0) + 1

    def release(self, platform: tuple[str, str]) -> bool:
        """One driver less; whether the platform has to end now."""
        self._platforms[platform] -= 1
        if self._platforms[platform]:
            return False
        del self._platforms[platform]
        return self.is_embedded and not self.is_lost and self.origin.is_here

    async def end(self) -> None:
        """One user less; the last one disconnects, if it was us who connected."""
        if not self.origin.is_here:
            return  # the parent's threads hold it
        self._users -= 1
        if not self._users and self._ray is not None:
            if RaySession._current is self:
                RaySession._current = None
            await self._ray.stop()


def _enter(address: str | None, dashboard: bool, memory: int | None, folder: str | None) -> None:
    if address is not None:
        ray_connection.join(address)
    else:
        assert folder is not None
        ray_connection.start(folder, has_dashboard=dashboard, memory=memory)


class JoinedRay:
    """How another process's embedded Ray is joined, and left."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._token: RayToken | None = None
        self._note_child: Callable[[], None] | None = None

    def join(self, _folder: str | None) -> None:
        """Connect. Its reaper is told first, so that it spares this process."""
        claim = self._claim
        assert claim.address is not None
        if claim.folder is not None:
            note_guest(claim.folder)
            # A child has the cluster's logs open as its parent has.
            self._note_child = partial(note_guest, claim.folder)
            fork_guard.on_fork(self._note_child)
        if claim.token_file is not None:
            self._token = RayToken(Path(claim.token_file), is_new=False)
            self._token.enter()
        ray_connection.join(claim.address)

    def leave(self) -> None:
        """Disconnect."""
        # Ray has the token in memory until it has disconnected; then it looks at the environment.
        if self._token is not None:
            self._token.leave()
        if self._note_child is not None:
            fork_guard.no_longer(self._note_child)
        ray_connection.disconnect()
