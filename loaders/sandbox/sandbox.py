"""Sandbox: the walls between tenant code and the host, their order, and the proof that they
hold.

The zygote prepares what isolates share (namespaces, Landlock's rules, the seccomp filter) and
proves in a child that it holds; each isolate then applies the sandbox to itself before it reads a
byte of a tenant. Required are seccomp and one wall around files: Landlock, namespaces, or both.
What is missing is an error, never a weaker sandbox.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable

import msgspec

from dynamic_workflows.eventlog.errors import SandboxUnavailable

from . import isolate_uids, landlock, linux, seccomp
from . import namespaces as jail
from .dirfd_importer import DescriptorFinder
from .readable_paths import Readable

UNSAFE = "unsafe-none"
"""The level without any wall."""
_NICENESS = 5
_HINT = "Set isolation='unsafe-none' only for code that you trust."
# What the child that tries the walls answers with.
_HOLDS, _HOLDS_BLIND, _LEAKS, _BROKEN = range(10, 14)


class SandboxPlan(msgspec.Struct, array_like=True, frozen=True):
    """Which walls to build; the switches for single walls are for tests of what each wall stops."""

    level: str = "sandbox"
    jail: str = "auto"
    threads: bool = False
    uid: int = 65534
    uids_first: int = 0
    landlock: bool = True
    seccomp: bool = True
    rlimits: bool = True

    @property
    def is_partial(self) -> bool:
        """Whether a wall is left out on purpose."""
        return not (self.landlock and self.seccomp and self.rlimits)


class Sandbox:
    """The sandbox of one zygote's isolates."""

    def __init__(self, plan: SandboxPlan) -> None:
        self._plan = plan
        self._zygote_pid = os.getpid()
        self._zygote_bytes = linux.memory_bytes(self._zygote_pid)[0]
        self._is_jailed = False
        self._ruleset: landlock.Ruleset | None = None
        self._filters: tuple[bytes, bytes] | None = None
        self._finder: DescriptorFinder | None = None
        self._names: list[str] = []
        self._uids_first = 0
        self.notes: list[str] = []
        """What was asked for, and is missing without making a wall a lesser one."""

    @classmethod
    def prepare(cls, plan: SandboxPlan, *, readable: Readable) -> Sandbox:
        """Build what isolates share, and prove it; raises SandboxUnavailable."""
        sandbox = cls(plan)
        if plan.level == "sandbox":
            sandbox._build(readable)
        return sandbox

    @property
    def level(self) -> str:
        """The walls in place, for people: "landlock7+seccomp+jail"."""
        return "+".join(self._names) or UNSAFE

    @property
    def kept_fds(self) -> list[int]:
        """Return the descriptors that an isolate needs until it is sandboxed, or to read its
        files."""
        ruleset = [self._ruleset.fd] if self._ruleset else []
        return [*ruleset, *(self._finder.fds if self._finder else [])]

    # --- in the zygote --------------------------------------------------------------------------

    def _build(self, readable: Readable) -> None:
        plan = self._plan
        if os.geteuid() == 0:
            self._choose_users()
        abi = landlock.abi() if plan.landlock else 0
        why_no_jail = "it is switched off" if plan.jail == "off" else self._enter_jail(readable)
        self._is_jailed = why_no_jail is None
        if plan.jail == "require" and why_no_jail:
            raise SandboxUnavailable(
                f"jail='require', but there is no jail: {why_no_jail}. It needs CAP_SYS_ADMIN, or "
                "a kernel and a container that let ordinary users make user namespaces"
            )
        if not plan.is_partial:
            _require(abi > 0, why_no_jail)
        if abi:
            self._ruleset = landlock.Ruleset(abi=abi)
            self._ruleset.allow_reading(readable.entries())
            if self._is_jailed:
                self._ruleset.allow_writing(jail.TMP_RULE)
            self._names.append(f"landlock{abi}")
        if plan.seccomp:
            self._filters = (
                seccomp.program(threads=plan.threads, tmp=False),
                seccomp.program(threads=plan.threads, tmp=True),
            )
            self._names.append("seccomp")
        if plan.rlimits:
            self._names.append("limits")
        if self._is_jailed:
            self._names.append("jail")
        if self._uids_first:
            self._names.append("uids")
        # From now on no process of the same user may trace the zygote. Not earlier: the owner of
        # /proc/self, who has to write the map of users for the jail, changes with it.
        if plan.rlimits:
            linux.set_dumpable(False)
        linux.bound_capabilities()
        self._prove(readable)

    def _choose_users(self) -> None:
        uid, first = self._plan.uid, self._plan.uids_first
        why_not = isolate_uids.why_not(first) if first else None
        if first and not why_not:
            self._uids_first = first
            return
        if why_not:
            self.notes.append(f"isolates are all the same user, {uid}: {why_not}")
        if uid == 0:
            raise SandboxUnavailable(
                "refusing to run tenant code as root: set a uid for isolates to become"
            )
        if not isolate_uids.exists(uid):
            raise SandboxUnavailable(
                f"refusing to run tenant code as root: there is no user {uid} to become in this "
                f"user namespace. Map it, or do not run as root. {_HINT}"
            )

    def _enter_jail(self, readable: Readable) -> str | None:
        """Enter the namespaces, or return why not. A child tries first: a failed entry cannot be
        undone."""
        why = _in_child(lambda: jail.enter(readable))
        if why is None:
            jail.enter(readable)
        return why

    def _prove(self, readable: Readable) -> None:
        status = self._try_in_child()
        if status == _HOLDS_BLIND:
            # The user that isolates become cannot reach the standard library by its path. The
            # directories are open already: imports go through their descriptors.
            self._finder = DescriptorFinder(readable)
            status = self._try_in_child()
        if status == _HOLDS or (self._plan.is_partial and status == _LEAKS):
            return
        raise SandboxUnavailable(
            f"the walls ({self.level}) do not hold on this kernel (test {status}). {_HINT}"
        )

    def _try_in_child(self) -> int:
        pid = os.fork()
        if pid == 0:
            status = _BROKEN
            try:
                self.apply(memory_bytes=256 << 20, files_max=64, tmp_bytes=0)
                status = _test_from_inside(self._finder)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    # --- in the isolate -------------------------------------------------------------------------

    def apply(self, *, memory_bytes: int, files_max: int, tmp_bytes: int) -> None:
        """Apply the sandbox to this process; each step relies on the ones before it."""
        linux.die_with_parent()
        if os.getppid() != self._zygote_pid:
            os._exit(0)
        if self._plan.level != "sandbox":
            return
        if tmp_bytes:
            self._make_tmp(tmp_bytes)
        if self._plan.rlimits:
            self._limit(memory_bytes, files_max, tmp_bytes)
        self._become_nobody()
        if self._plan.rlimits:
            linux.set_dumpable(False)
            with contextlib.suppress(OSError):  # from Linux 6.3 on; seccomp refuses the same
                linux.prctl(linux.PR_SET_MDWE, 1)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if self._ruleset is not None:
            self._ruleset.restrict_self()
        if self._filters is not None:
            seccomp.install(self._filters[tmp_bytes > 0])
        if self._finder is not None:
            self._finder.install()

    def _make_tmp(self, tmp_bytes: int) -> None:
        if not self._is_jailed:
            raise SandboxUnavailable("tmp_mb needs the jail, which this host does not allow")
        jail.mount_tmp(tmp_bytes)
        os.environ["TMPDIR"] = jail.TMP
        os.chdir(jail.TMP)

    def _limit(self, memory_bytes: int, files_max: int, tmp_bytes: int) -> None:
        for name, limit in (
            ("AS", self._zygote_bytes + memory_bytes),
            ("NOFILE", files_max),
            ("FSIZE", tmp_bytes),
            ("CORE", 0),
            ("MEMLOCK", 0),
            ("MSGQUEUE", 0),
            ("NICE", 0),
            ("RTPRIO", 0),
        ):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
        os.nice(_NICENESS)

    def _become_nobody(self) -> None:
        if os.geteuid() == 0:
            uid = self._uids_first + os.getpid() if self._uids_first else self._plan.uid
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            linux.die_with_parent()  # a change of user clears it
            if os.getppid() != self._zygote_pid:
                os._exit(0)
        linux.drop_capabilities()


def _require(has_landlock: bool, why_no_jail: str | None) -> None:
    if not seccomp.is_supported():
        raise SandboxUnavailable(
            "refusing to run tenant code: this kernel or processor has no seccomp filter that we "
            f"know (Linux on x86-64 or aarch64). {_HINT}"
        )
    if not has_landlock and why_no_jail is not None:
        raise SandboxUnavailable(
            "refusing to run tenant code: no wall around files. Missing are Landlock (Linux 5.13 "
            "or newer, with landlock in the lsm= list of the boot line) and the jail "
            f"({why_no_jail}). {_HINT}"
        )


def _in_child(work: Callable[[], None]) -> str | None:
    """Return None if the work succeeds in a forked child, else why not."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(writer, str(error).encode()[:1000] or b"unknown")
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        why = file.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return why or (f"a child that tried it ended with {status}" if status else None)


def _test_from_inside(finder: DescriptorFinder | None) -> int:
    """Check that forbidden operations fail, and that allowed ones work."""
    for attempt in (
        lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
        lambda: os.listdir("/proc/self"),
        lambda: os.close(os.open("/tmp/test", os.O_CREAT | os.O_WRONLY)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        lambda: os.kill(os.getppid(), 0),
        lambda: os.close(linux.memory_file("test")),
    ):
        with contextlib.suppress(OSError):
            attempt()
            return _LEAKS
    source = os.__file__
    try:
        if finder is not None:
            finder.read(source)
        else:
            with open(source, "rb") as file:
                file.read(1)
    except OSError:
        return _HOLDS_BLIND
    return _HOLDS
