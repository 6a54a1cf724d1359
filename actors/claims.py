"""Claims: which platform is at work on a log, and where; small files in the log's root.

A platform claims the log before it starts: it creates `platform/<number>`, one above all that are
there, and removes it when it ends. A claim whose platform is gone counts for nothing, and the
highest one that is left says who is at work. It is a courtesy between programs: what keeps a log
from splitting is the fencing of its streams, whatever claims say.

Whether the platform of a claim lives: on the claim's own machine an embedded one lives as long as
the process that started it, stopped (SIGSTOP) or not. From another machine, and for a cluster, it
is told by the time of its last sign of life, which its loader writes; a cluster whose address
refuses connections is gone. A claim holds no secret: the token of a Ray is named by its path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import subprocess
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dynamic_workflows.eventlog.clock import US, Clock, SystemClock, to_datetime
from dynamic_workflows.eventlog.errors import PlatformBusy, Unavailable
from dynamic_workflows.eventlog.store.base import AlreadyExists, NotFound, Store, create_once

PREFIX = "platform/"
BEAT_S = 30.0
"""How often a platform gives a sign of life."""
STALE_S = 120.0
"""A platform elsewhere that has given none for so long is taken for gone."""
_TRIES_MAX = 50
_CONNECT_S = 2.0
_log = logging.getLogger("dynamic_workflows.claims")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who works on a log, and where it is found."""

    token: str
    """Random, so that two claims are never equal."""
    host: str
    machine: str
    """Equal where process ids mean the same processes."""
    pid: int
    started: str
    """When that process started, in its machine's own words: a pid may be used again."""
    since_us: int
    version: str
    namespace: str
    is_embedded: bool
    beat_us: int
    """The last sign of life (µs)."""
    address: str | None = None
    """Of Ray's control service; None while it starts."""
    ray_pid: int | None = None
    """The process of an embedded Ray's control service."""
    folder: str | None = None
    """Of an embedded Ray's files."""
    token_file: str | None = None
    """Where the token lies that an embedded Ray asks for; its user's alone to read."""

    def __str__(self) -> str:
        since = f"{to_datetime(self.since_us):%Y-%m-%d %H:%M:%S} UTC"
        if self.is_embedded:
            return f"process {self.pid} on {self.host}, since {since}"
        where = f"the cluster at {self.address}, namespace {self.namespace!r}"
        return f"{where}, started by process {self.pid} on {self.host}, since {since}"

    @property
    def is_here(self) -> bool:
        """Whether it was made on this machine."""
        return self.machine == machine()

    @property
    def is_ours(self) -> bool:
        """Whether this very process made it."""
        return self.is_here and self.pid == os.getpid() and self.started == started(os.getpid())

    def encode(self) -> bytes:
        """As JSON, for people too."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


@dataclass(frozen=True)
class NumberedClaim:
    """A claim, and the number under which it lies."""

    number: int
    claim: Claim

    @property
    def key(self) -> str:
        """Where it lies in the store."""
        return _key(self.number)


def new_claim(namespace: str, *, is_embedded: bool, address: str | None, now_us: int) -> Claim:
    """A claim of this process."""
    return Claim(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=machine(),
        pid=os.getpid(),
        started=started(os.getpid()) or "",
        since_us=now_us,
        version=_version(),
        namespace=namespace,
        is_embedded=is_embedded,
        beat_us=now_us,
        address=address,
    )


class Claims:
    """The claims on one log."""

    def __init__(self, store: Store, *, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()

    async def at_work(self, *, beside: int | None = None) -> NumberedClaim | None:
        """The newest claim whose platform lives; `beside`: a number that does not count."""
        found = [one for one in await self._all() if one.number != beside]
        for one in reversed(found):
            if await self._lives(one.claim):
                return one
        return None

    async def take(self, claim: Claim, *, over: bool = False) -> NumberedClaim:
        """Lie down a claim; PlatformBusy (`.claim`) where another lives, unless taken `over`.

        Of two that are made at the same moment, one is refused, or both and one of them at the
        next try.
        """
        for tries in range(_TRIES_MAX):
            before = await self._all()
            if not over:
                await self._refuse_beside(before)
            number = max((one.number for one in before), default=0) + 1
            try:
                await create_once(self._store, _key(number), claim.encode())
            except AlreadyExists:
                continue  # somebody was quicker
            taken = NumberedClaim(number, claim)
            if over:
                await self._sweep(before)
                return taken
            try:
                # Numbers begin again where all claims were removed: look at what came meanwhile.
                await self._refuse_beside(
                    [one for one in await self._all() if one.claim.token != claim.token]
                )
            except PlatformBusy:
                await self.remove(taken)
                if tries == _TRIES_MAX - 1:
                    raise
                await asyncio.sleep(0.02 * secrets.randbelow(10))
                continue
            await self._sweep(before)
            return taken
        raise Unavailable(f"{self._store.root} is claimed by too many at once: try again")

    async def _refuse_beside(self, others: list[NumberedClaim]) -> None:
        for one in reversed(others):
            if await self._lives(one.claim):
                raise busy(self._store.root, one)

    async def update(self, numbered: NumberedClaim, **changes: Any) -> NumberedClaim:
        """Write down more about it."""
        changed = NumberedClaim(numbered.number, replace(numbered.claim, **changes))
        await self._store.put(changed.key, changed.claim.encode())
        return changed

    async def remove(self, numbered: NumberedClaim) -> None:
        """The platform has ended. One that cannot be removed goes stale by itself."""
        try:
            await self._store.delete(numbered.key)
        except Unavailable as error:
            _log.warning("the claim %s was not removed: %s", numbered.key, error)

    async def beat(self, numbered: NumberedClaim) -> None:
        """Give a sign of life, unless the claim was removed."""
        try:
            await self._store.get(numbered.key)
        except NotFound:
            return
        await self.update(numbered, beat_us=self._clock.now_us())

    async def _all(self) -> list[NumberedClaim]:
        found = []
        for entry in await self._store.list(PREFIX):
            name = entry.key.removeprefix(PREFIX).removesuffix(".json")
            if not (name.isascii() and name.isdigit()):
                continue
            try:
                claim = _decode(await self._store.get(entry.key))
            except NotFound:
                continue
            if claim is None:
                _log.warning("%s is no claim: it is passed over", entry.key)
            else:
                found.append(NumberedClaim(int(name), claim))
        return sorted(found, key=lambda one: one.number)

    async def _sweep(self, before: list[NumberedClaim]) -> None:
        for one in before:
            if not await self._lives(one.claim):
                await self.remove(one)

    async def _lives(self, claim: Claim) -> bool:
        if claim.is_embedded and claim.is_here:
            return started(claim.pid) == claim.started
        if not claim.is_embedded and claim.address and await _refuses(claim.address):
            return False
        return self._clock.now_us() - claim.beat_us < STALE_S * US


def busy(root: str, held: NumberedClaim, why: str = "") -> PlatformBusy:
    """The error for a log that another platform works on."""
    claim = held.claim
    share = (
        "share that one"
        if claim.is_embedded
        else f"share it by connect(address={claim.address!r}, namespace={claim.namespace!r})"
    )
    return PlatformBusy(
        f"a platform is at work on the log at {root} already ({claim}){why}: {share}, end it, or "
        "take the log from it by connect(take_over=True)",
        holder=str(claim),
        claim=held,
    )


def _key(number: int) -> str:
    return f"{PREFIX}{number:020d}.json"


def _decode(data: bytes) -> Claim | None:
    try:
        told = json.loads(data)
        known = {field.name for field in fields(Claim)}
        claim = Claim(**{name: value for name, value in told.items() if name in known})
        is_sound = isinstance(claim.pid, int) and isinstance(claim.beat_us, int)
        return claim if is_sound and isinstance(claim.since_us, int) else None
    except (ValueError, TypeError, AttributeError):
        return None


async def _refuses(address: str) -> bool:
    """Whether there is surely nobody: that it cannot be reached from here proves nothing."""
    host, _, port = address.rpartition(":")
    try:
        connecting = asyncio.open_connection(host.strip("[]"), int(port))
        _, writer = await asyncio.wait_for(connecting, _CONNECT_S)
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError, TimeoutError):
        return False
    writer.close()
    return False


# --- processes


def machine() -> str:
    """What tells this machine, as it was booted, and its process ids from any other."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass  # not Linux
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a living process started; None where there is none (a zombie is none)."""
    if not Path("/proc/self/stat").exists():
        return _started_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields_after_name = stat.rpartition(")")[2].split()
    if fields_after_name[0] in ("Z", "X"):
        return None
    return fields_after_name[19]


def _started_by_ps(pid: int) -> str | None:
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _version() -> str:
    try:
        return metadata.version("dynamic-workflows")
    except metadata.PackageNotFoundError:
        return "unknown"
