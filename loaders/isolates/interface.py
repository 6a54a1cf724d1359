"""Interface: what a supervisor requires of an isolate, wherever tenant code runs.

One isolate runs one bundle of one tenant and is never reused for another. It is a separate process
behind walls (`isolate_process.py`), or, for tests, a guest in the same event loop (`inline.py`);
both exchange the messages of `protocol/messages.py`. Nothing here blocks the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..protocol.messages import Frame
from ..sandbox import isolate_uids


@dataclass(frozen=True)
class Limits:
    """The resources of one isolate; exceeding one ends it (or delays the call), with a reason."""

    memory_mb: int = 512
    """Memory beyond what an empty isolate has."""
    turn_cpu_ms: int = 500
    """CPU time of one turn of the guest's event loop."""
    turn_wall_ms: int = 5_000
    """Wall time of one turn of the guest's event loop."""
    silent_cpu_ms: int = 5_000
    """CPU time since the last frame: defeats a forged heartbeat."""
    calls_in_flight_max: int = 10_000
    """Calls without an answer yet; the guest holds further ones back."""
    bytes_in_flight_max: int = 128 * 1024 * 1024
    """Bytes of such calls; also the most of one message, and of what the guest leaves unread."""
    files_max: int = 64
    """Open files, with the few of the isolate itself."""
    tmp_mb: int = 0
    """Size of a private /tmp in memory; more than 0 needs the jail."""
    output_mb: int = 256
    """Raw output that had to be dropped: what native code writes past Python's own streams, beyond
    64 KiB a second. 8 MB a second are forgiven.
    """
    messages_per_second_max: int = 20_000
    """Unsolicited messages: logs, and idleness beyond once for each message that it got.
    Ten seconds' worth may come at once; an honest guest sends a twentieth at most.
    """


@dataclass(frozen=True)
class Isolation:
    """How isolates are sandboxed: the deployment's choice, never the tenant's."""

    level: Literal["sandbox", "unsafe-none"] = "sandbox"
    """"sandbox" refuses to start where walls are missing; "unsafe-none": just a process."""
    jail: Literal["auto", "require", "off"] = "auto"
    """The second wall for files: a root directory with nothing but Python and the SDK in it."""
    packages: tuple[str, ...] = ()
    """Installed packages (import names) that tenants may import: imported ahead, and readable."""
    threads: bool = False
    """Whether tenant code may start threads."""
    uid: int = 65534
    """The user that isolates become where the supervisor is root and there are no `uids_first`."""
    uids_first: int = isolate_uids.FIRST
    """Where the supervisor is root, each isolate becomes a user of its own: this number plus the
    number of its process. 0: all become `uid`, as they do where the host has no such users."""
    warm: int = 2
    """Blank isolates kept ready; each is used once."""
    hide_supervisor: bool = True
    """Make this process unreadable to others of its user: no core dumps, no py-spy."""


@dataclass(frozen=True)
class Exit:
    """How an isolate ended."""

    reason: str
    """For people: `cpu limit of 0.5 s exceeded`, `killed by signal 11`, `closed`."""
    is_tenants_own: bool
    """True when the tenant's code caused it (a limit, a fault signal, seccomp, a broken frame, its
    own exit); False when the platform did (closed by us, a SIGKILL from outside, a lost zygote).
    """
    life: int = 0
    """The lifetime that was being resumed when it died (from the heartbeat page), 0 if unknown."""
    kind: str = "platform"
    """"cpu", "wall", "memory", "silent", "stubborn", "unanswered", "output", "messages",
    "protocol", "signal", "exit", "platform" or "closed"."""


class Isolate(Protocol):
    """A running guest, as its supervisor sees it."""

    level: str
    """The walls reached, for people: "landlock7+seccomp+jail", "unsafe-none", "inline"."""
    pid: int | None

    @property
    def is_busy(self) -> bool:
        """Whether the guest's event loop has work now, as the guest reports it."""
        ...

    def send(self, frames: list[Frame]) -> None:
        """Queue messages; one loop turn, one write. Never blocks, never raises."""
        ...

    def kill(self, exit: Exit) -> None:
        """End the isolate now; `on_exit` follows with this Exit."""
        ...


OnFrames = Callable[[list[Frame]], None]
OnExit = Callable[[Exit], None]


class Isolates(Protocol):
    """The source of isolates; one per supervisor."""

    async def start(
        self,
        *,
        limits: Limits,
        on_frames: OnFrames,
        on_exit: OnExit,
        first: Sequence[Frame] = (),
    ) -> Isolate:
        """Return a fresh isolate; Load is the first message that it takes. Raises
        SandboxUnavailable.

        `first`: messages to begin with. They are on their way while the isolate still starts, so
        that it does not wait for them; nothing is heard of it before `start` returns.
        """
        ...

    async def close(self) -> None:
        """End every isolate, and the processes that they were forked from."""
        ...
