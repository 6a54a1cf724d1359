"""A folder or repository that a hostile tenant filled is read as what it is, and leads nowhere."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_folder import git

import dynamic_workflows as dw
from dynamic_workflows.loaders.bundles import sources
from dynamic_workflows.loaders.bundles.bundle import bundle_of


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One whose every setting would start a program that leaves a mark."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "index.py").write_text("x = 1\n")
    mark = f"touch {tmp_path / 'mark'}"
    (folder / ".gitmodules").write_text(f'[submodule "s"]\n path = s\n url = ext::sh -c "{mark}"\n')
    (folder / ".gitattributes").write_text("* filter=odd diff=odd text eol=crlf ident\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "odd")
    settings = "filter.odd.smudge filter.odd.process diff.odd.textconv core.fsmonitor core.pager"
    for name in [*settings.split(), "core.sshCommand", "diff.external", "credential.helper"]:
        git(folder, "config", name, mark)
    git(folder, "config", "alias.ls-tree", f"!{mark}")
    for hook in ("post-checkout", "post-index-change", "reference-transaction"):
        (folder / ".git" / "hooks" / hook).write_text(f"#!/bin/sh\n{mark}\n")
        (folder / ".git" / "hooks" / hook).chmod(0o755)
    return folder


def put(repository: Path, data: bytes, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), *command], input=data, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def tree(repository: Path, *entries: str | bytes) -> str:
    """A commit of a tree that no honest git would write; BLOB, TREE and HEAD stand for objects."""
    blob = put(repository, b"y = 1\n", "hash-object", "-w", "--stdin")
    below = put(repository, f"100644 blob {blob}\tescape.py\n".encode(), "mktree")
    head = git(repository, "rev-parse", "HEAD")
    made = b""
    for entry in (b"100644 blob BLOB\tindex.py", *entries):
        line = entry if isinstance(entry, bytes) else entry.encode()
        for name, found in (("BLOB", blob), ("TREE", below), ("HEAD", head)):
            line = line.replace(name.encode(), found.encode())
        made += line + b"\0"
    written = put(repository, made, "mktree", "-z", "--missing")
    return git(repository, "-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", "-m", "m",
               written)  # fmt: skip


async def paths(load: sources.Load) -> list[str]:
    code = await load("acme")
    bundle_of(code)
    return sorted(code.modules)


async def test_whatever_a_repository_asks_git_to_run_is_not_run(
    repository: Path, tmp_path: Path
) -> None:
    assert await paths(dw.from_git(repository)) == ["index.py"]
    code = await dw.from_git(repository)("acme")
    assert code.modules["index.py"] == "x = 1\n", "as it is stored, with no filter"
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("160000 commit HEAD\tsubmodule", []),
        ("120000 blob BLOB\tlink.py", []),
        ("040000 tree TREE\t..", []),
        ("040000 tree TREE\t.git", []),
        ("040000 tree TREE\t__pycache__", []),
        ("100644 blob BLOB\tIndex.py", ["Index.py"]),
        ("100644 blob BLOB\t\uff49ndex.py", ["\uff49ndex.py"]),
        ("100644 blob BLOB\ta\nb.py", ["a\nb.py"]),
        ("100755 blob BLOB\trun.py", ["run.py"]),
    ],
)
async def test_odd_entries_of_a_tree_are_left_out_or_are_names_like_any_other(
    entry: str, found: list[str], repository: Path, tmp_path: Path
) -> None:
    revision = tree(repository, entry)
    assert await paths(dw.from_git(repository, revision)) == sorted(["index.py", *found])
    assert not (tmp_path / "mark").exists()


async def test_twins_by_case_or_by_normalisation_are_two_modules(repository: Path) -> None:
    twins = ["Index.py", "caf\u00e9.py", "cafe\u0301.py"]
    revision = tree(repository, *(f"100644 blob BLOB\t{name}" for name in twins))
    assert await paths(dw.from_git(repository, revision)) == sorted(["index.py", *twins])


@pytest.mark.parametrize(
    "entry", [b"100644 blob BLOB\tb\xff.py", b"100644 blob " + b"1" * 40 + b"\tq.py"]
)
async def test_names_that_are_no_text_and_objects_that_are_missing_are_refused(
    entry: bytes, repository: Path
) -> None:
    revision = tree(repository, entry)
    with pytest.raises(dw.CodeError) as caught:
        await dw.from_git(repository, revision)("acme")
    assert caught.value.code == "code.load_failed"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A tenant's folder with one of each kind of file."""
    made = tmp_path / "acme" / "code"
    made.mkdir(parents=True)
    (made / "index.py").write_text("x = 1\n")
    (made / "link.py").symlink_to("/etc/hostname")
    (made / "folder").symlink_to("/etc")
    (made / "dangling.py").symlink_to("/nowhere")
    (made / "loop").symlink_to(made)
    os.mkfifo(made / "fifo.py")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(made / "s.py"))
        yield made


async def test_links_pipes_and_sockets_of_a_folder_are_left_out(folder: Path) -> None:
    async with asyncio.timeout(30):
        assert await paths(dw.from_folder(folder)) == ["index.py"]


async def test_a_file_that_turns_into_a_link_is_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = os.stat

    def swapping(path: object, **more: object) -> os.stat_result:
        found = seen(path, **more)  # type: ignore[arg-type]
        if path == "index.py":
            (folder / "index.py").unlink()
            (folder / "index.py").symlink_to("/etc/hostname")
        return found

    monkeypatch.setattr("os.stat", swapping)
    with pytest.raises(dw.CodeError, match="cannot be read"):
        await dw.from_folder(folder)("acme")


async def test_what_a_tenant_may_have_made_leads_nowhere_by_a_link(
    folder: Path, tmp_path: Path
) -> None:
    load = dw.from_folder(tmp_path / "{tenant}" / "code")
    assert await paths(load) == ["index.py"]
    (tmp_path / "globex").mkdir()
    (tmp_path / "globex" / "code").symlink_to(folder)
    with pytest.raises(dw.CodeError, match="link"):
        await load("globex")
    # The tenant's own part of the path is the platform's to say.
    (tmp_path / "initech").symlink_to(tmp_path / "acme")
    assert list((await load("initech")).modules) == ["index.py"]
