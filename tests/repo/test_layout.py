"""The tree, the import name and the wheel tell one story, and imports only go down.

The floors are named once, here, from the ground up. Everything else is read from the disk, so a
new folder or a new import cannot slip past.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from paths import ROOT
from tree import FACE, FLOORS, imported, sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What `from dynamic_workflows import …` promises. A name is added here when it is added there.
PROMISED = """
AllowList App CodeError Corrupt DynamicWorkflowBinding EgressDeniedError Event Fenced InstanceError
InvalidError LimitExceededError LoadReplacedWarning MissingDispatcherMetadataError
NonRetryableDelayError NonRetryableError Platform PlatformBusy PlatformClosed PlatformConfig
QueryError Request Response SandboxUnavailable Service Status StepConfig StepError Tenant
Unavailable UnserialisableValueError ValueTooLargeError WorkerCode WorkerEntrypoint WorkerLoader
WorkerStub WorkflowBinding WorkflowEntrypoint WorkflowEvent WorkflowFailedError
WorkflowFatalError WorkflowInstance WorkflowInternalError
WorkflowTerminatedError WorkflowTimeoutError WorkflowsError connect
create_dynamic_workflow_entrypoint dispatch_workflow fetch from_folder from_git from_mapping
wrap_workflow_binding
""".split()


def tops(path: Path) -> set[str]:
    """The first words of everything a file imports."""
    return {name.partition(".")[0] for name in imported(path)}


def run(code: str, *, folder: Path, path: Path | None = None) -> str:
    """Run code in a fresh interpreter, in a folder, with one more place to import from."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("floor", FLOORS)
def test_a_link_in_the_face_leads_to_each_floor(floor: str) -> None:
    link = ROOT / FACE / floor
    assert link.is_symlink(), "an export turned the link into a copy: there would be two of each"
    assert link.resolve() == ROOT / floor
    assert not os.readlink(link).startswith("/"), "an absolute link breaks in the next clone"


def test_the_wheel_ships_every_package_on_disk() -> None:
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in sources(FACE)
        if path.name == "__init__.py"
    }
    for floor in FLOORS:
        for path in sources(floor):
            if path.name == "__init__.py":
                on_disk.add(".".join([FACE, *path.parent.relative_to(ROOT).parts]))
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == on_disk
    assert set(settings["package-dir"]) >= {FACE, *(f"{FACE}.{floor}" for floor in FLOORS)}


@pytest.mark.parametrize("floor", FLOORS)
def test_no_folder_of_python_lacks_its_init(floor: str) -> None:
    bare = {path.parent for path in sources(floor)} - {
        path.parent for path in sources(floor) if path.name == "__init__.py"
    }
    assert not bare, "a folder without __init__.py is in the checkout but not in the wheel"


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_only_go_down(floor: str) -> None:
    at_or_below = set(FLOORS[: FLOORS.index(floor) + 1])
    for path in sources(floor):
        ours = [name.split(".") for name in imported(path) if name.split(".")[0] == FACE]
        upward = [".".join(parts) for parts in ours if parts[1:2] and parts[1] not in at_or_below]
        assert not upward, f"{path.relative_to(ROOT)} reaches up"
        assert [FACE] not in ours, f"{path.relative_to(ROOT)} imports the face"


def test_only_two_modules_know_ray() -> None:
    users = [
        str(path.relative_to(ROOT))
        for folder in [FACE, *FLOORS]
        for path in sources(folder)
        if "ray" in tops(path)
    ]
    assert users == ["actors/cluster/ray_actors.py", "actors/cluster/ray_connection.py"]


@pytest.mark.parametrize("folder", [FACE, *FLOORS, "bench", "tests", "examples"])
def test_bare_names_are_left_to_users(folder: str) -> None:
    for path in sources(folder):
        assert not tops(path) & set(FLOORS), f"{path.relative_to(ROOT)} takes a name"


def test_importing_the_face_is_cheap() -> None:
    heavy = run(
        f"import sys, {FACE}, {FACE}.testing\n"
        "print(*sorted({'ray', 'duckdb', 'pyarrow', 'typer'} & set(sys.modules)))",
        folder=ROOT,
    )
    assert heavy == ""


def test_a_slot_starts_without_what_it_needs_later() -> None:
    heavy = run(
        f"import sys, {FACE}.actors.placement.tenant_process\n"
        "print(*sorted({'ray', 'duckdb', 'pyarrow', 'typer'} & set(sys.modules)))",
        folder=ROOT,
    )
    assert heavy == ""


def test_the_face_is_what_we_promise() -> None:
    face = importlib.import_module(FACE)
    assert sorted(face.__all__) == sorted(PROMISED)
    assert all(getattr(face, name) is not None for name in PROMISED)


def test_the_wheel_holds_each_module_once_and_works_elsewhere(tmp_path: Path) -> None:
    # Built from a copy: a build leaves its own folders beside the sources.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, copy)
    clutter = shutil.ignore_patterns("__pycache__")
    for folder in [FACE, *FLOORS]:
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            symlinks=True,
            ignore=clutter,
        )
    pip = [sys.executable, "-m", "pip", "--quiet"]
    wheelhouse, installed = tmp_path / "wheelhouse", tmp_path / "installed"
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(wheelhouse), str(copy)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = wheelhouse.iterdir()

    with zipfile.ZipFile(wheel) as archive:
        shipped = sorted(name for name in archive.namelist() if name.endswith(".py"))
    expected = [path.relative_to(ROOT) for path in sources(FACE)]
    expected += [Path(FACE) / path.relative_to(ROOT) for floor in FLOORS for path in sources(floor)]
    assert shipped == sorted(str(path) for path in expected)

    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(installed), str(wheel)],
        check=True,
        capture_output=True,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # A user's own module of the same bare name must win over ours, and ours must still be found.
    (elsewhere / "actors.py").write_text("mine = True\n")
    code = (
        f"import actors, {FACE}.actors, {FACE}.eventlog.events, {FACE}.loaders\n"
        f"assert actors.mine\nprint({FACE}.__file__)"
    )
    assert Path(run(code, folder=elsewhere, path=installed)).is_relative_to(installed)
