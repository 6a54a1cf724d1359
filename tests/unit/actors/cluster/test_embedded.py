"""What an embedded Ray gets before it starts: a private folder, a token, and a reaper."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_world import eventually

from dynamic_workflows.actors.cluster import open_ports, orphan_reaper
from dynamic_workflows.actors.cluster.ray_token import MODE, PATH, VALUE, RayToken
from dynamic_workflows.actors.cluster.runtime_folder import RuntimeFolder


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short temporary folder for runtime folders to lie in."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def test_the_folder_is_closed_to_others_whatever_the_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        folder = RuntimeFolder()
        token = RayToken(folder.token)
    finally:
        os.umask(before)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.token.stat().st_mode & 0o777 == 0o600
    assert token is not None
    folder.remove()
    assert not folder.path.exists()


def test_the_sockets_of_ray_fit_below_the_longest_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for length in (26, 60):
        deep = Path("/tmp") / ("x" * (length - len("/tmp/")))
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        try:
            folder = RuntimeFolder()
            session = "session_2026-12-01_03-37-44_940119_4194304"
            assert len(f"{folder.ray}/{session}/sockets/plasma_store") <= 107
            folder.remove()
        finally:
            deep.rmdir()


def test_each_token_is_another_and_its_text_is_in_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VALUE, "what the user has")
    one, two = RayToken(tmp_path / "one"), RayToken(tmp_path / "two")
    one.enter()
    text = (tmp_path / "one").read_text()
    assert (os.environ[MODE], os.environ[PATH]) == ("token", str(tmp_path / "one"))
    assert len(text) == 64
    assert text != (tmp_path / "two").read_text()
    assert not any(text in value for value in os.environ.values())
    assert VALUE not in os.environ, "Ray would prefer it to the file"
    one.leave()
    assert two is not one


@pytest.mark.parametrize("mode", [None, "token", "disabled"])
def test_the_users_own_settings_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    monkeypatch.delenv(MODE, raising=False)
    monkeypatch.delenv(PATH, raising=False)
    monkeypatch.setenv(VALUE, "mine")
    if mode is not None:
        monkeypatch.setenv(MODE, mode)
    token = RayToken(tmp_path / "token")
    token.enter()
    token.leave()
    assert [os.environ.get(name) for name in (MODE, PATH, VALUE)] == [mode, None, "mine"]


def test_what_the_user_sets_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATH, "before")
    token = RayToken(tmp_path / "token")
    token.enter()
    os.environ[PATH] = "meanwhile"
    token.leave()
    assert os.environ[PATH] == "meanwhile"


def test_a_token_is_never_written_over_what_somebody_has_planted(tmp_path: Path) -> None:
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        RayToken(tmp_path / "token")
    assert not (tmp_path / "elsewhere").exists()


def test_what_a_killed_driver_and_its_killed_reaper_left_is_reaped_by_the_next(
    place: Path,
) -> None:
    left = place / "dw-leftover"
    left.mkdir(mode=0o700)
    (left / orphan_reaper.LOCK).touch()
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; file = open(sys.argv[1], 'w'); input()",
            str(left / "log"),
        ],
        stdin=subprocess.PIPE,
    ) as orphan:
        asyncio.run(eventually((left / "log").exists, what="the orphan's file"))
        folder = RuntimeFolder()
        assert orphan.wait(30) == -signal.SIGKILL
    asyncio.run(eventually(lambda: not left.exists(), what="the folder's end"))
    folder.remove()


def test_a_folder_is_left_over_only_if_it_is_ours_and_nobody_holds_it(place: Path) -> None:
    living = RuntimeFolder()
    young, wide, free = (place / f"dw-{name}" for name in ("young", "wide", "free"))
    for folder in (young, wide, free):
        folder.mkdir(mode=0o700)
    (wide / orphan_reaper.LOCK).touch()
    wide.chmod(0o777)
    (free / orphan_reaper.LOCK).touch()
    link = place / "dw-link"
    link.symlink_to(free)
    found = {
        folder.name: orphan_reaper._is_left_over(str(folder))
        for folder in (living.path, young, wide, free, link)
    }
    assert found == {
        living.path.name: False,
        "dw-young": False,
        "dw-wide": False,
        "dw-free": True,
        "dw-link": False,
    }
    living.remove()


def test_the_reaper_holds_the_folder_when_only_its_driver_was_killed(place: Path) -> None:
    code = (
        "from dynamic_workflows.actors.cluster.runtime_folder import RuntimeFolder\n"
        "import os\nfolder = RuntimeFolder()\nprint(folder.path, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(place)},
    ) as driver:
        assert driver.stdout is not None
        path = Path(driver.stdout.readline().strip())
        with open(path / orphan_reaper.LOCK) as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        driver.kill()
    asyncio.run(eventually(lambda: not path.exists(), what="the folder's end"))


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="there is no /proc/net here")
@pytest.mark.parametrize(
    ("family", "address", "is_open"),
    [
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET, "127.9.9.9", False),
        (socket.AF_INET, "0.0.0.0", True),
        (socket.AF_INET6, "::1", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", False),
        (socket.AF_INET6, "::", True),
    ],
)
def test_a_port_that_others_reach_is_named(
    family: socket.AddressFamily, address: str, is_open: bool
) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.bind((address, 0))
        except OSError as error:
            pytest.skip(f"{address}: {error}")
        server.listen()
        port = server.getsockname()[1]
        found = [one for one in open_ports.beyond_loopback([os.getpid()]) if one.port == port]
    assert len(found) == is_open
    if found:
        assert found[0].pid == os.getpid()
        assert f"listens on {address} port {port}" in str(found[0])


def test_a_client_is_no_listener_and_a_process_that_has_gone_has_none() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        assert open_ports.beyond_loopback([2**22 + 1]) == []
    assert open_ports.is_loopback(ipaddress.ip_address("::ffff:127.0.0.1"))
    assert not open_ports.is_loopback(ipaddress.ip_address("::ffff:10.0.0.1"))
