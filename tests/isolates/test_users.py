"""Where the supervisor is root, isolates are users of their own, and never somebody else."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from isolate_users import IDS
from isolates import DEFAULT, isolates, start
from paths import IMPORTS
from pydantic import ValidationError
from real_tenants import real_tenant

import dynamic_workflows as dw
from dynamic_workflows.loaders.sandbox import isolate_uids
from dynamic_workflows.loaders.sandbox.sandbox import SandboxPlan

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or isolate_uids.why_not(isolate_uids.FIRST) is not None,
    reason="not root, or not of a host that has these users",
)
# Nothing stands but the difference of users.
NO_WALLS = {"jail": "off", "landlock": False, "seccomp": False, "rlimits": False}


@needs_root
async def test_each_isolate_is_a_user_of_its_own_with_no_group_but_its_own() -> None:
    async with isolates() as made:
        first, second = await start(made), await start(made)
        for talk in (first, second):
            uid = isolate_uids.FIRST + (talk.isolate.pid or 0)
            assert await talk.run(IDS) == ("ok", repr([uid] * 6))
        assert first.isolate.pid != second.isolate.pid
        assert made.level.endswith("+uids")


@needs_root
@pytest.mark.parametrize("uids_first", [isolate_uids.FIRST, 0])
async def test_one_isolate_cannot_touch_another_even_where_no_wall_stands(uids_first: int) -> None:
    tries = """
import os
found = []
for attempt in (
    lambda: os.kill({pid}, 0),
    lambda: open("/proc/{pid}/environ", "rb").read(),
    lambda: open("/proc/{pid}/mem", "rb").close(),
    lambda: os.listdir("/proc/{pid}/fd"),
    lambda: os.setpriority(os.PRIO_PROCESS, {pid}, 19),
):
    try:
        attempt()
    except PermissionError:
        found.append("refused")
    else:
        found.append("done")
result = sorted(set(found))
"""
    plan: Any = {**NO_WALLS, "uids_first": uids_first, "uid": 64_992}
    async with isolates(sandbox=SandboxPlan(**plan)) as made:
        victim, thief = await start(made), await start(made)
        # As any process is that has executed a program as its user, unlike one that changed it.
        await victim.run("import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)")
        state, text = await thief.run(tries.format(pid=victim.isolate.pid))
        assert state == "ok", text
        assert text == ("['refused']" if uids_first else "['done']")


@needs_root
@pytest.mark.parametrize("first", [1_950_000_000, 0])
async def test_a_deployment_may_name_the_range_or_have_none(first: int) -> None:
    code = """
import os
from dynamic_workflows import WorkerEntrypoint
class Entry(WorkerEntrypoint):
    async def who(self):
        return [os.getuid(), os.getpid()]
"""
    async with real_tenant({"index.py": code}, isolate_uids_first=first) as tenant:
        uid, pid = await tenant.entrypoint("Entry").who()
        assert uid == (first + pid if first else 65534)
        assert tenant.isolates.level.endswith("+uids") == bool(first)


@pytest.mark.parametrize("first", [-1, isolate_uids.FIRST_MAX + 1])
def test_a_range_that_no_kernel_has_is_no_setting(first: int) -> None:
    with pytest.raises(ValidationError):
        dw.PlatformConfig(isolate_uids_first=first)


def test_numbers_of_real_users_are_not_taken() -> None:
    assert "have to begin between" in (isolate_uids.why_not(1000) or "")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("/etc/passwd", "anna:x:2010000123:100::/home/anna:/bin/sh"),
        ("/etc/group", "people:x:2014194303:anna"),
        ("/etc/subuid", "anna:2009990000:65536"),
        ("/etc/subgid", "anna:1000000000:2000000000"),
    ],
)
def test_a_range_in_which_somebody_lives_is_refused(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = isolate_uids._lines
    monkeypatch.setattr(isolate_uids, "_lines", lambda path: [line] if path == name else read(path))
    monkeypatch.setattr(isolate_uids, "_has", lambda kind, first, last: True)
    assert name in (isolate_uids.why_not(isolate_uids.FIRST) or "")
    monkeypatch.setattr(isolate_uids, "_lines", lambda path: ["", "+:::", "x:y:z"])
    assert isolate_uids.why_not(isolate_uids.FIRST) is None


async def in_a_user_namespace(size: int) -> str:
    """What root gets that has only so many users: the level and the note, or the refusal."""
    program = f"""
import asyncio, ctypes, logging, os, sys
told, tell = os.pipe(), os.pipe()
parent = os.getpid()
if (pid := os.fork()) == 0:
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        os._exit(77)
    os.write(told[1], b"x")
    os.read(tell[0], 1)
    from isolate_users import level_or_reason
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    print(asyncio.run(level_or_reason()), flush=True)
    os._exit(0)
os.close(told[1])
if os.read(told[0], 1):
    for kind in ("uid", "gid"):
        with open(f"/proc/{{pid}}/{{kind}}_map", "w") as file:
            file.write("0 0 {size}")
    os.write(tell[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(IMPORTS)},
        stdout=asyncio.subprocess.PIPE,
    )
    output = (await process.communicate())[0].decode()
    if process.returncode == 77:
        pytest.skip("no user namespaces on this host")
    assert process.returncode == 0, output
    return output


@needs_root
async def test_root_of_a_small_user_namespace_shares_one_user_and_says_why() -> None:
    said = await in_a_user_namespace(65_536)
    assert "isolates are all the same user, 65534: this user namespace has no uids" in said
    assert "+uids" not in said
    assert re.search(r"seccomp\+limits(\+jail)?$", said.strip())


@needs_root
async def test_root_of_a_user_namespace_without_another_user_is_refused() -> None:
    said = await in_a_user_namespace(1)
    assert "refusing to run tenant code as root: there is no user 65534" in said


def test_the_range_is_where_nobody_is_by_custom() -> None:
    assert DEFAULT.uids_first == isolate_uids.FIRST > 2_000_200_000  # what SSSD gives at most
    assert isolate_uids.FIRST + isolate_uids.COUNT <= 0x7FFE_0000  # what systemd keeps for itself
    pid_max = Path("/proc/sys/kernel/pid_max")
    assert not pid_max.exists() or int(pid_max.read_text()) <= isolate_uids.COUNT
