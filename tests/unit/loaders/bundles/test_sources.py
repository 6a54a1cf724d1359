"""Code comes from folders, git revisions and mappings, and from nothing beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from git_folder import git
from kit_tenants import load as kit_load

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.cli import steer
from dynamic_workflows.loaders.bundles.sources import read_revision

CODE = """
from dynamic_workflows import WorkflowEntrypoint
from words import WORD

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return WORD
"""


def write(folder: Path, word: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.py").write_text(CODE)
    (folder / "words.py").write_text(f"WORD = {word!r}\n")
    return folder


def commit(folder: Path, word: str) -> str:
    write(folder, word)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", word)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


async def word(load: Any, tenant_id: str = "acme") -> Any:
    async with testing.connect(load=load) as platform:
        return await (await platform.tenant(tenant_id).workflows.create()).result()


async def test_a_folder_is_the_code_of_every_tenant(tmp_path: Path) -> None:
    folder = write(tmp_path / "code", "from a folder")
    (folder / "data").mkdir()
    (folder / "data" / "a.bin").write_bytes(b"\xff\x00")
    (folder / ".secret").write_text("never")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    load = dw.from_folder(folder, limits={"steps": 7})
    assert await word(load) == "from a folder"
    code = await load("acme")
    assert sorted(code.modules) == ["data/a.bin", "index.py", "words.py"]
    assert code.modules["data/a.bin"] == b"\xff\x00"
    assert code.limits == {"steps": 7}


async def test_each_tenant_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "acme", "of acme")
    write(tmp_path / "brown", "of brown")
    load = dw.from_folder(tmp_path / "{tenant}")
    assert [await word(load, name) for name in ("acme", "brown")] == ["of acme", "of brown"]
    for odd in ("..", ".", "../acme", "acme/../brown"):
        with pytest.raises(dw.CodeError, match="path"):
            await load(odd)
    with pytest.raises(dw.CodeError) as caught:
        await load("nobody")
    assert caught.value.code == "code.load_failed"


async def test_a_git_revision_is_read_without_checking_it_out(repository: Path) -> None:
    first = commit(repository, "one")
    git(repository, "tag", "v1")
    second = commit(repository, "two")
    (repository / "words.py").write_text("WORD = 'not committed'\n")
    assert await word(dw.from_git(repository, first)) == "one"
    assert await word(dw.from_git(repository, "v1")) == "one"
    assert await word(dw.from_git(repository, second[:10])) == "two"
    assert await word(dw.from_git(repository)) == "two"
    load = dw.from_git(repository, "main")
    assert await word(load) == "two"
    commit(repository, "three")
    assert await word(load) == "three"


async def test_a_folder_of_a_repository_is_code_too(repository: Path) -> None:
    write(repository / "tenants" / "acme", "of acme")
    write(repository / "tenants" / "brown", "of brown")
    (repository / "link.py").symlink_to("/etc/passwd")
    (repository / "data.bin").write_bytes(b"\x00\nabc\n")
    commit(repository, "root")
    load = dw.from_git(repository, folder="tenants/{tenant}")
    assert [await word(load, name) for name in ("acme", "brown")] == ["of acme", "of brown"]
    assert await word(dw.from_git(repository / "tenants" / "acme")) == "of acme"
    whole = await read_revision(repository)
    assert "link.py" not in whole.modules
    assert whole.modules["data.bin"] == b"\x00\nabc\n"
    assert whole.modules["tenants/acme/index.py"] == CODE
    for odd in ("../..", "/etc"):
        with pytest.raises(dw.CodeError, match="no folder"):
            await read_revision(repository, folder=odd)


@pytest.mark.parametrize(
    "revision", ["", "-h", "--output=/tmp/x", "-", "HEAD\n--all", "nowhere", "HEAD:index.py", "a b"]
)
async def test_what_is_no_revision_is_refused(repository: Path, revision: str) -> None:
    commit(repository, "one")
    with pytest.raises(dw.CodeError) as caught:
        await read_revision(repository, revision)
    assert caught.value.code == "code.load_failed"


async def test_a_repository_that_is_none_is_refused(tmp_path: Path) -> None:
    for odd in (tmp_path, tmp_path / "nowhere", "--help"):
        with pytest.raises(dw.CodeError) as caught:
            await read_revision(odd)
        assert caught.value.code == "code.load_failed"


@pytest.mark.parametrize("odd", ["https://me:s3cr3t@example.com/x.git", "ext::sh -c s3cr3t"])
async def test_a_url_is_no_repository_and_is_not_repeated(odd: str) -> None:
    with pytest.raises(dw.CodeError, match="clone it first") as caught:
        await read_revision(odd)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "tenant_id", ["main~1", "main^", "main@{0}", "@", "main:", "a..b", "main^{tree}", "[m]ain"]
)
async def test_no_id_of_a_tenant_is_more_than_a_name(repository: Path, tenant_id: str) -> None:
    commit(repository, "one")
    commit(repository, "two")
    with pytest.raises(dw.CodeError, match="cannot be part of"):
        await dw.from_git(repository, "{tenant}")(tenant_id)
    named = dw.from_git(repository, "refs/heads/{tenant}")
    assert (await named("main")).modules["words.py"] == "WORD = 'two'\n"
    with pytest.raises(dw.CodeError, match="no revision"):
        await named(git(repository, "rev-parse", "HEAD"))


async def test_a_commit_is_what_it_was_whatever_replaces_it(repository: Path) -> None:
    first = commit(repository, "one")
    git(repository, "replace", first, commit(repository, "evil"))
    assert (await read_revision(repository, first)).modules["words.py"] == "WORD = 'one'\n"


async def test_a_clone_that_lacks_objects_starts_no_program_to_get_them(
    repository: Path, tmp_path: Path
) -> None:
    commit(repository, "one")
    git(repository, "config", "uploadpack.allowFilter", "true")
    partial, sign = tmp_path / "partial", tmp_path / "sign"
    git(tmp_path, "clone", "-q", "--bare", "--filter=blob:none", f"file://{repository}", "partial")
    git(partial, "config", "remote.origin.uploadpack", f"touch {sign}; git-upload-pack")
    with pytest.raises(dw.CodeError):
        await read_revision(partial)
    assert not sign.exists()


async def test_a_hook_of_another_repository_does_not_lead_there(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, "one")
    for name in ("GIT_DIR", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert (await read_revision(repository)).modules["words.py"] == "WORD = 'one'\n"


async def test_many_files_are_read_in_one_pass(repository: Path) -> None:
    for i in range(600):
        (repository / f"{i}.txt").write_text(f"{i}\n" * (i % 7))
    (repository / "empty.txt").write_bytes(b"")
    commit(repository, "many")
    modules = (await read_revision(repository)).modules
    assert all(modules[f"{i}.txt"] == f"{i}\n" * (i % 7) for i in range(600))
    assert modules["empty.txt"] == ""


async def test_a_mapping_is_asked_each_time() -> None:
    codes: dict[str, Any] = {"acme": {"index.py": CODE, "words.py": "WORD = 1"}}
    load = dw.from_mapping(codes)
    assert await word(load) == 1
    codes["acme"] = await kit_load("order")
    assert await load("acme") is codes["acme"]
    with pytest.raises(dw.CodeError, match="nobody"):
        await load("nobody")


def test_the_command_line_reads_a_revision(repository: Path) -> None:
    commit(repository, "one")
    commit(repository, "two")
    code = steer._code_in(repository, "index.py", "HEAD~1")
    assert code.modules["words.py"] == "WORD = 'one'\n"
    assert steer._code_in(repository, "index.py", None).modules["words.py"] == "WORD = 'two'\n"
