"""A lesser host: runs isolates where the kernel refuses some calls, and prints what came of it.

`python tests/support/lesser_host.py HOST`, as any user; the answer is JSON. The kernel itself
refuses, by a filter that this process and all below it get before anything else is tried.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import struct
import subprocess
import sys
from typing import Any

from paths import IMPORTS, ROOT

if __name__ == "__main__":
    sys.path[:0] = [*IMPORTS, str(ROOT)]

from attacks.arena import LIMITS, UID, try_all
from attacks.catalogue import ATTACKS
from attacks.report import ORDINARY
from isolates import isolates, start
from real_tenants import real_tenant, until

import dynamic_workflows as dw
from dynamic_workflows.actors.placement.metrics import of_isolates
from dynamic_workflows.eventlog.errors import SandboxUnavailable
from dynamic_workflows.loaders.isolates.interface import Isolation
from dynamic_workflows.loaders.sandbox import linux, seccomp
from dynamic_workflows.loaders.sandbox.sandbox import SandboxPlan
from dynamic_workflows.loaders.sandbox.syscall_numbers import SYSCALLS

NO_LANDLOCK = {"landlock_create_ruleset": errno.ENOSYS}
NO_NAMESPACES = {"unshare": errno.EPERM}
OLD = {
    **{"pidfd_open": errno.ENOSYS, "pidfd_send_signal": errno.ENOSYS},
    **{"close_range": errno.ENOSYS, "clone3": errno.ENOSYS, "openat2": errno.ENOSYS},
}
NO_FILTERS = "prctl(PR_SET_SECCOMP)"
ATTACKED = ("a default container", "Linux 4.19, or gVisor")
"""Where attacks are tried: each has another of the two walls around files, and no more."""
HOSTS: dict[str, dict[str, int]] = {
    "everything": {},
    "landlock left out of the boot line": {"landlock_create_ruleset": errno.EOPNOTSUPP},
    "a default container": NO_NAMESPACES,
    "Linux 4.19, or gVisor": {**NO_LANDLOCK, **OLD},
    "a default container on an old kernel": {**NO_LANDLOCK, **OLD, **NO_NAMESPACES},
    "no seccomp": {NO_FILTERS: errno.EINVAL},
}
JAILS = ("auto", "require", "off")
# Some of every kind.
SAMPLE = [attack for attack in ATTACKS if not attack.open_without_jail][::14]
_NUMBERS = {
    **SYSCALLS.get(linux.MACHINE, {}),
    **{"landlock_create_ruleset": 444, "pidfd_open": 434, "pidfd_send_signal": 424},
}
_LOAD_NUMBER = (0x20, 0, 0, 0)
_PRCTL = {"x86_64": 157, "aarch64": 167}


def refuse(calls: dict[str, int]) -> None:
    """Have the kernel refuse these, to this process and all that it starts."""
    code = [_LOAD_NUMBER]
    for name, answer in calls.items():
        if name != NO_FILTERS:
            code += [(0x15, 0, 1, _NUMBERS[name]), (0x06, 0, 0, 0x50000 | answer)]
    if NO_FILTERS in calls:
        code += [(0x15, 0, 3, _PRCTL[linux.MACHINE]), (0x20, 0, 0, 16)]  # its first argument
        code += [(0x15, 0, 1, linux.PR_SET_SECCOMP), (0x06, 0, 0, 0x50000 | calls[NO_FILTERS])]
    code.append((0x06, 0, 0, 0x7FFF0000))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(b"".join(struct.pack("=HBBI", *step) for step in code))


async def visit(host: str) -> dict[str, Any]:
    """By the choice of a jail: the level or the reason, and what attacks came to."""
    return {jail: await _try(jail, host in ATTACKED) for jail in JAILS}


async def _try(jail: Any, is_attacked: bool) -> dict[str, Any]:
    async with isolates(Isolation(jail=jail, warm=0)) as made:
        try:
            talk = await start(made, LIMITS)
        except SandboxUnavailable as error:
            return {"refused": error.message}
        state, text = await talk.run("import mailbox, json.tool; result = mailbox.Maildir")
        assert state == "ok", text
        await talk.close()
        spinning = await start(made, LIMITS)
        spinning.tell("while True: pass")
        found = {"level": made.level, "spin": (await spinning.end()).reason}
    plan = SandboxPlan(jail=jail, uid=UID)
    outcomes = await try_all(plan, SAMPLE if is_attacked else [])
    return found | {"open": [name for name, o in outcomes.items() if o.verdict == "open"]}


async def be_a_tenant() -> dict[str, Any]:
    """What a tenant, its operators and the log are told of the walls."""
    said = io.StringIO()
    logging.basicConfig(stream=said, level=logging.INFO, format="%(message)s")
    async with real_tenant({"index.py": _WORKFLOW}) as tenant:
        try:
            instance = await tenant.workflows.create()
        except dw.WorkflowsError as error:
            return {"error": f"{type(error).__name__}: {error}", "log": said.getvalue()}
        await until(lambda: "begun" in said.getvalue(), "the workflow begins")
        status = await instance.status()
        sandbox = {sample.tags.get("walls") for sample in of_isolates(tenant.isolates, "acme")}
        return {
            "status": status.isolation,
            "metrics": [wall for wall in sandbox if wall],
            "log": said.getvalue(),
        }


_WORKFLOW = """
from dynamic_workflows import WorkflowEntrypoint
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        print("begun")
        await step.wait_for_event("never", type="never")
"""


def visit_as(host: str, *arguments: str, is_root: bool) -> dict[str, Any] | None:
    """What that host gives root, or a user without rights; None: no interpreter for that user."""
    user = None if is_root or os.geteuid() != 0 else ORDINARY
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}"):
        if user is None or _runs(python, user):
            done = _run([python, __file__, host, *arguments], user)
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found
    return None


def _runs(python: str, user: int) -> bool:
    try:
        return _run([python, "-c", "import msgspec, pytest"], user).returncode == 0
    except OSError:
        return False


def _run(command: list[str], user: int | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        env=_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _environment() -> dict[str, str]:
    places = [*IMPORTS, str(ROOT), *(path for path in sys.path if path)]
    return {"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    refuse(HOSTS[sys.argv[1]])
    work = be_a_tenant() if "tenant" in sys.argv[2:] else visit(sys.argv[1])
    print(json.dumps(asyncio.run(work)))
