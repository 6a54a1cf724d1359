"""Callbacks reach the loader actor, wherever their modules lie; and dead drivers leave nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_workflows.actors.cluster import callback_pickling, orphan_reaper

MODULE = """
import math

HELD = {"greeting": "hello"}

def helper(name):
    return f"{HELD['greeting']} {name} {math.floor(2.5)}"

def load(tenant_id):
    return helper(tenant_id)
"""
LOAD = "import sys, pickle; f = pickle.load(sys.stdin.buffer); print(f('acme'), f.__module__)"


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Any]:
    """A module that was imported by path, as pytest does: no other process finds it by name."""
    path = tmp_path / "somewhere" / "their_callbacks.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("their_callbacks", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["their_callbacks"] = found
    spec.loader.exec_module(found)
    yield found
    del sys.modules["their_callbacks"]


def revived(pickled: bytes, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Load the function in another process, call it, and see what it prints."""
    return subprocess.run(
        [sys.executable, "-c", LOAD], input=pickled, cwd=cwd, capture_output=True, check=False
    )


def test_a_callback_that_cannot_be_imported_elsewhere_travels_by_value(
    module: Any, tmp_path: Path
) -> None:
    done = revived(callback_pickling.dumps(module.load, is_elsewhere=False), tmp_path)
    assert done.stdout == b"hello acme 2 their_callbacks\n", done.stderr


def test_a_callback_beside_the_script_travels_by_name_on_the_same_machine(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(module.__file__).parent
    monkeypatch.chdir(folder)
    pickled = callback_pickling.dumps(module.load, is_elsewhere=False)
    assert b"hello" not in pickled
    assert revived(pickled, folder).stdout == b"hello acme 2 their_callbacks\n"
    by_value = callback_pickling.dumps(module.load, is_elsewhere=True)
    assert revived(by_value, Path("/")).stdout == b"hello acme 2 their_callbacks\n"


def test_installed_code_travels_by_name() -> None:
    callback: Callable[..., Any] = callback_pickling.dumps
    assert len(callback_pickling.dumps(callback, is_elsewhere=True)) < 200


@pytest.mark.parametrize("place", ["site-packages", "dist-packages"])
def test_what_is_installed_for_a_user_or_by_the_system_travels_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / place
    folder.mkdir()
    (folder / "their_library.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    library: Any = importlib.import_module("their_library")
    try:
        assert len(callback_pickling.dumps(library.load, is_elsewhere=True)) < 200
    finally:
        del sys.modules["their_library"]


def test_a_module_that_goes_by_two_names_is_no_hindrance(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "alias_of_theirs", module)
    done = revived(callback_pickling.dumps(module.load, is_elsewhere=False), tmp_path)
    assert done.stdout == b"hello acme 2 their_callbacks\n", done.stderr


def test_the_reaper_ends_the_clusters_processes_and_no_others(tmp_path: Path) -> None:
    cluster, other = tmp_path / "cluster", tmp_path / "cluster-2"
    hold = "import sys; f = open(sys.argv[1], 'w'); print('ready', flush=True); sys.stdin.read()"
    held: list[subprocess.Popen[bytes]] = []
    for folder in (cluster, cluster, other):
        folder.mkdir(exist_ok=True)
        held.append(
            subprocess.Popen(
                [sys.executable, "-c", hold, str(folder / f"log-{len(held)}")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert held[-1].stdout is not None
        assert held[-1].stdout.readline() == b"ready\n"
    member, driver, stranger = held
    try:
        program = [
            sys.executable,
            "-I",
            "-S",
            str(orphan_reaper.__file__),
            str(cluster),
            str(driver.pid),
        ]
        pipe = subprocess.PIPE
        with subprocess.Popen(program, stdin=pipe, stdout=pipe) as watch:
            assert watch.stdin is not None
            assert watch.stdout is not None
            assert watch.wait(30) == 0, "it goes on as nobody's child"
            assert sorted(orphan_reaper.members(str(cluster), spared=os.getpid())) == sorted(
                [member.pid, driver.pid]
            )
            watch.stdin.close()
            assert watch.stdout.read() == b"", "the end of its output is the end of its work"
        assert member.wait(30) == -9
        assert driver.poll() is None
        assert stranger.poll() is None
        assert not cluster.exists()
        assert other.exists()
    finally:
        for process in held:
            process.kill()
            process.communicate()
