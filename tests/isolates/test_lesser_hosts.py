"""Hosts that offer less get the walls that are left, or a refusal that says what is missing."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import pytest
from lesser_host import HOSTS, JAILS, NO_FILTERS, SAMPLE, visit_as

from dynamic_workflows.loaders.sandbox import linux
from dynamic_workflows.loaders.sandbox.syscall_numbers import SYSCALLS

pytestmark = pytest.mark.skipif(
    not linux.IS_LINUX or linux.MACHINE not in SYSCALLS, reason="no filter to take things away"
)


@functools.cache
def visited(host: str, is_root: bool) -> dict[str, Any]:
    found = visit_as(host, is_root=is_root)
    if found is None:
        pytest.skip("no interpreter that an ordinary user can reach")
    return found


def expected(host: str, jail: str, *, is_root: bool) -> str:
    """The level that this host should reach, or how its refusal begins."""
    best = visited("everything", is_root)
    missing = HOSTS[host]
    has_jail = "unshare" not in missing and "+jail" in best["auto"].get("level", "")
    landlock = re.search(r"landlock\d+\+", best["auto"].get("level", ""))
    if "landlock_create_ruleset" in missing:
        landlock = None
    if NO_FILTERS in missing:
        return "refusing to run tenant code: this kernel or processor has no seccomp filter"
    if jail == "require" and not has_jail:
        return "jail='require', but there is no jail: "
    is_jailed = has_jail and jail != "off"
    if not landlock and not is_jailed:
        return "refusing to run tenant code: no wall around files. Missing are Landlock"
    uids = "+uids" if best["auto"].get("level", "").endswith("+uids") else ""
    return (landlock[0] if landlock else "") + "seccomp+limits" + "+jail" * is_jailed + uids


def visits() -> list[Any]:
    """Each host as an ordinary user; as root, where walls are the same, in the long run only."""
    always = [pytest.param(host, "an ordinary user", id=f"{host}-user") for host in HOSTS]
    return always + [
        pytest.param(host, "root", marks=pytest.mark.slow, id=f"{host}-root") for host in HOSTS
    ]


@pytest.mark.parametrize(("host", "user"), visits())
def test_a_host_gets_the_walls_it_can_build_or_hears_what_is_missing(host: str, user: str) -> None:
    is_root = user == "root"
    if is_root and os.geteuid() != 0:
        pytest.skip("not root")
    found = visited(host, is_root)
    for jail in JAILS:
        outcome = found[jail]
        wanted = expected(host, jail, is_root=is_root)
        if "refus" in wanted or "jail=" in wanted:
            assert outcome["refused"].startswith(wanted)
        else:
            spin = "cpu limit of 0.4 s exceeded"
            assert outcome == {"level": wanted, "spin": spin, "open": []}


def test_the_attacks_on_lesser_hosts_are_of_every_kind() -> None:
    assert len(SAMPLE) > 12
    assert len({attack.group for attack in SAMPLE}) > 3


def test_the_level_of_a_lesser_host_is_in_the_status_the_metrics_and_the_log() -> None:
    is_root = os.geteuid() == 0
    level = expected("a default container", "auto", is_root=is_root)
    if level.startswith("refusing"):
        pytest.skip("no Landlock on this host")
    told = visit_as("a default container", "tenant", is_root=is_root)
    assert told is not None
    assert told["status"] == level
    assert told["metrics"] == [level]
    assert f"isolates stand behind {level}" in told["log"]


def test_a_tenant_whose_host_has_no_walls_hears_what_is_missing() -> None:
    told = visit_as("no seccomp", "tenant", is_root=os.geteuid() == 0)
    assert told is not None
    assert told["error"].startswith("SandboxUnavailable: refusing to run tenant code")
    assert "unsafe-none" in told["error"]
