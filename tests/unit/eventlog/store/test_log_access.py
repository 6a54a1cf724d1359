"""Who on a host may read a log: its user alone, or a group that a setting names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.errors import InvalidError, Unavailable
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store import permissions
from dynamic_workflows.eventlog.store.filesystem import Disk
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.store.open_store import open_store


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def write(root: Path, disk: Disk | None = None) -> dict[str, int]:
    """A log, an object and one that was replaced; answers the modes of all that is there."""
    store = LocalStore(root, disk=disk)
    log = await EventLog.open(
        store, "tenants/tenant=a", tenant_id="a", clock=SystemClock(), ids=SystemIds()
    )
    await store.create("code/abc", b"1")
    await store.put("code/abc", b"2")
    await log.seal()
    await log.close()
    await store.close()
    return modes_below(root)


def modes_below(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode)
        for path in [root, *root.rglob("*")]
    }


class OldDisk(Disk):
    """A file system that has no files without a name."""

    def open_tmpfile(self, directory: str) -> int:
        raise OSError(95, "not here")


@pytest.mark.parametrize("disk", [Disk, OldDisk])
async def test_nobody_else_reads_a_log_whatever_the_umask(
    tmp_path: Path, umask: int, disk: type[Disk]
) -> None:
    modes = await write(tmp_path / "deep" / "log", disk())
    assert len(modes) > 6
    assert {mode & 0o077 for mode in modes.values()} == {0}
    assert {mode for name, mode in modes.items() if (tmp_path / "deep/log" / name).is_dir()} == {
        0o700
    }


@pytest.mark.parametrize("disk", [Disk, OldDisk])
async def test_a_group_may_read_and_no_more_where_the_setting_says_so(
    tmp_path: Path, umask: int, disk: type[Disk]
) -> None:
    root = tmp_path / "log"
    permissions.share(str(root), str(os.getgid()))
    modes = await write(root, disk())
    is_folder = {name: (root / name).is_dir() for name in modes}
    assert {mode for name, mode in modes.items() if is_folder[name]} == {0o2750}
    assert {mode for name, mode in modes.items() if not is_folder[name]} == {0o640}
    assert {path.stat().st_gid for path in root.rglob("*")} == {os.getgid()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder to any group")
async def test_the_group_is_the_one_that_was_named(tmp_path: Path) -> None:
    permissions.share(str(tmp_path / "log"), "65534")
    await write(tmp_path / "log")
    assert {path.stat().st_gid for path in (tmp_path / "log").rglob("*")} == {65534}


def test_a_root_that_exists_keeps_what_it_grants_its_group_and_loses_what_others_had(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o775)
    permissions.share(str(tmp_path), str(os.getgid()))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2770


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder to any group")
def test_what_another_group_could_write_the_one_that_is_named_can_only_read(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o775)
    permissions.share(str(tmp_path), "65534")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2750


def test_a_group_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="log_group='no-such-group' is no group of this host"):
        permissions.share(str(tmp_path / "log"), "no-such-group")
    permissions.share("s3://bucket/log", str(os.getgid()))


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_who_does_not_own_the_root_is_told_so() -> None:
    with pytest.raises(Unavailable, match="cannot be opened to the group"):
        permissions.share("/", str(os.getgid()))


async def test_an_old_log_that_is_open_to_others_goes_on_and_is_named(tmp_path: Path) -> None:
    root = tmp_path / "log"
    modes = await write(root)
    assert permissions.exposure(str(root)) is None
    for name in modes:
        (root / name).chmod(0o755 if (root / name).is_dir() else 0o644)
    assert "may read what lies in" in str(permissions.exposure(str(root)))
    store = open_store(root)
    assert await store.get("code/abc") == b"2"
    await store.create("code/new", b"")
    assert stat.S_IMODE((root / "code/new").stat().st_mode) == 0o600
    await store.close()


@pytest.mark.parametrize(
    ("mode", "text"), [(0o777, "may replace"), (0o1777, None), (0o755, None), (0o700, None)]
)
def test_a_root_in_which_others_may_replace_files_is_named(
    tmp_path: Path, mode: int, text: str | None
) -> None:
    tmp_path.chmod(mode)
    found = permissions.exposure(str(tmp_path))
    assert (found is None) if text is None else text in str(found)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder to another user")
@pytest.mark.parametrize("whose", ["", "log", "log/code"])
def test_a_root_that_another_user_may_replace_is_named(tmp_path: Path, whose: str) -> None:
    (tmp_path / "log/code").mkdir(parents=True, mode=0o700)
    os.chown(tmp_path / whose, 65534, -1)
    assert str(tmp_path / whose) in str(permissions.exposure(str(tmp_path / "log")))
    os.chown(tmp_path / whose, os.getuid(), -1)
    assert permissions.exposure(str(tmp_path / "log")) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder to any group")
def test_a_root_that_a_group_may_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    assert permissions.exposure(str(tmp_path)) is None
    os.chown(tmp_path, -1, 65534)
    assert "every member of the group 65534" in str(permissions.exposure(str(tmp_path)))


def test_what_is_not_there_and_what_is_no_disk_exposes_nothing(tmp_path: Path) -> None:
    assert permissions.exposure(str(tmp_path / "none")) is None
    assert permissions.exposure("s3://bucket/log") is None
