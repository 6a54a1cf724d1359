"""The arena: a supervisor with its isolates, what is worth stealing, and attacks on both."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sysconfig
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from isolates import RESULT, Talk, isolates, start

from dynamic_workflows.loaders.isolates.interface import Exit, Limits
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates
from dynamic_workflows.loaders.sandbox.sandbox import SandboxPlan

from .catalogue import PRELUDE, Attack

# Nobody else's: where single walls are tried, what an attack may do it does to its own user.
UID = 64_990
LIMITS = Limits(memory_mb=128, turn_cpu_ms=400, turn_wall_ms=3_000, silent_cpu_ms=1_000)
_PATIENCE_S = 60.0
_QUIET_S = 0.4

COLUMNS = {
    "Landlock": SandboxPlan(jail="off", uid=UID, seccomp=False, rlimits=False),
    "seccomp": SandboxPlan(jail="off", uid=UID, landlock=False, rlimits=False),
    "limits": SandboxPlan(jail="off", uid=UID, landlock=False, seccomp=False),
    "all three": SandboxPlan(jail="off", uid=UID),
    "all + jail": SandboxPlan(jail="require", uid=UID),
}
"""The walls to try, by the table's column."""


@dataclass(frozen=True)
class Outcome:
    """What came of an attack."""

    verdict: str
    """"open", "blocked" (an error inside), "killed" (the isolate ended), "harmless"."""
    detail: str


class Arena:
    """Attacks one set of walls."""

    def __init__(self, made: ProcessIsolates, foreign: Path, names: dict[str, object]) -> None:
        self.isolates = made
        self.foreign = foreign
        self._names = names

    async def attack(self, attack: Attack) -> Outcome:
        """Run it in a fresh isolate, and see."""
        talk = await start(self.isolates, LIMITS)
        zygote = self.isolates._spawner
        assert zygote is not None
        names = {**self._names, "ZYGOTE": zygote.pid}
        header = "\n".join(f"{name} = {value!r}" for name, value in names.items())
        try:
            talk.tell(f"{header}\n{PRELUDE}\n{attack.source}")
            return await self._outcome(talk)
        finally:
            talk.isolate.kill(Exit("over", is_tenants_own=False, kind="closed"))
            await talk.end()

    async def _outcome(self, talk: Talk) -> Outcome:
        async with asyncio.timeout(_PATIENCE_S):
            try:
                state, text = msgspec.msgpack.decode(await talk.hear(RESULT))
            except AssertionError:
                return Outcome("killed", (await talk.end()).reason)
        if state != "ok":
            return Outcome("blocked", text.splitlines()[0])
        if text == "'open'":
            return Outcome("open", "")
        # It has done what it wanted: either its end follows from it, or nothing does.
        await asyncio.wait([talk.exit], timeout=_PATIENCE_S if text == "None" else _QUIET_S)
        if talk.exit.done():
            return Outcome("killed", talk.exit.result().reason)
        return Outcome("harmless" if text != "None" else "open", text)


@asynccontextmanager
async def arena(plan: SandboxPlan) -> AsyncIterator[Arena]:
    """The place and what is in it, for one set of walls."""
    home = make_home()
    with socket.create_server(("127.0.0.1", 0)) as tcp, unix_sockets(home) as (path, name):
        try:
            foreign = make_foreign(home)
            async with isolates(sandbox=plan) as made:
                yield Arena(made, foreign, names(foreign, tcp.getsockname()[1], path, name))
        finally:
            clean_up(home)


def clean_up(home: Path) -> None:
    """Remove what was made, and what attacks on single walls have left behind."""
    shutil.rmtree(home)
    for place in ("/tmp", "/dev/shm"):
        for path in Path(place).glob("dw-evil-*"):
            path.unlink(missing_ok=True)


def make_home() -> Path:
    """A new directory that everybody may enter, with a short path: a unix address has no room."""
    home = Path(tempfile.mkdtemp(prefix="arena-"))
    home.chmod(0o755)
    return home


def make_foreign(home: Path) -> Path:
    """Another tenant's directory, which no permission guards."""
    foreign = home / "foreign"
    foreign.mkdir()
    foreign.chmod(0o777)
    for file in ("wal", "victim", "unlink-me", "rename-me"):
        (foreign / file).write_text("secret")
        (foreign / file).chmod(0o666)
        if os.geteuid() == 0:
            os.chown(foreign / file, UID, UID)
    (foreign / "link").symlink_to("/etc/hostname")
    return foreign


class unix_sockets:
    """Two sockets that listen as the platform's own do: by a path and by an abstract name."""

    def __init__(self, home: Path) -> None:
        self._path = f"{home}/sock"
        self._name = f"\0dw-{os.getpid()}-{home.name}"

    def __enter__(self) -> tuple[str, str]:
        self._sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for sock, address in zip(self._sockets, (self._path, self._name), strict=True):
            sock.bind(address)
            sock.listen()
        os.chmod(self._path, 0o777)
        return self._path, self._name

    def __exit__(self, *exc: object) -> None:
        for sock in self._sockets:
            sock.close()


def names(foreign: Path, tcp_port: int, path: str, name: str) -> dict[str, object]:
    """What the attacks may know."""
    return {
        "FOREIGN": str(foreign),
        "SUPERVISOR": os.getpid(),
        "TCP_PORT": tcp_port,
        "UNIX_PATH": path,
        "UNIX_NAME": name,
        "PACKAGE": pytest.__file__,
        "NATIVE": native_library(),
    }


def native_library() -> str:
    """A native module of the standard library that no zygote imports."""
    libraries = Path(sysconfig.get_path("platstdlib"), "lib-dynload")
    libraries = libraries if libraries.is_dir() else Path(os.__file__).parent / "lib-dynload"
    return str(next(iter(sorted(libraries.glob("xxlimited*.so"))), "no library to try"))


async def try_all(
    plan: SandboxPlan, attacks: list[Attack], *, at_once: int = 6
) -> dict[str, Outcome]:
    """Every attack in an isolate of its own; outcomes by name."""
    async with arena(plan) as here:
        await here.isolates.ready()
        slots = asyncio.Semaphore(at_once)

        async def one(attack: Attack) -> Outcome:
            async with slots:
                return await here.attack(attack)

        zygote = here.isolates._spawner
        outcomes = await asyncio.gather(*(one(attack) for attack in attacks))
        # Whatever they tried: the zygote is the same, and the supervisor, which is us, goes on.
        assert here.isolates._spawner is zygote
        return {attack.name: outcome for attack, outcome in zip(attacks, outcomes, strict=True)}
