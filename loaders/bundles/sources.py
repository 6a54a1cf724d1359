"""Sources: tenant code from a folder, a revision of a git repository, or a mapping, as `load`.

Each function returns a callable for `connect(load=...)`: tenant id -> WorkerCode. All other fields
of a WorkerCode (env, limits, tails, global_outbound, …) are named arguments, for every tenant
alike.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from dynamic_workflows.eventlog.errors import CodeError

from .bundle import MODULES_BYTES_MAX, WorkerCode

# What git is told where it is run: this repository as it is, no questions, and nobody else. A clone
# that lacks objects would fetch them, by whatever program its own configuration names.
_QUIET = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
# What a git that runs us (in a hook) leaves in the environment for its own repository.
_STRAYS = frozenset(
    """
    GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR GIT_DIR GIT_GRAFT_FILE
    GIT_IMPLICIT_WORK_TREE GIT_INDEX_FILE GIT_NAMESPACE GIT_OBJECT_DIRECTORY GIT_PREFIX
    GIT_QUARANTINE_PATH GIT_REPLACE_REF_BASE GIT_SHALLOW_FILE GIT_WORK_TREE
    """.split()
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*(://|::)", re.IGNORECASE)
# No part of a branch's name, but of git's ways to say "the one before", "that file", "yesterday".
_REVISION_SIGNS = frozenset("~^:@{}?*[ ")

Load: TypeAlias = Callable[[str], Awaitable[WorkerCode]]

MAIN_MODULE = "index.py"
_TEXT = (".py", ".txt", ".md", ".html", ".csv", ".toml", ".yaml", ".yml")
_GIT_SECONDS_MAX = 60.0
# What git says of an object: mode, type, name, size or "-", and the path after a tab.
_ENTRY = re.compile(rb"(\d+) (\w+) ([0-9a-f]+) +(\d+|-)\t(.+)", re.DOTALL)


def from_mapping(
    codes: Mapping[str, WorkerCode | Mapping[str, Any]],
    *,
    main_module: str = MAIN_MODULE,
    **more: Any,
) -> Load:
    """Return a source of each tenant's code by its id: a WorkerCode, or its modules by path.

    The mapping is asked each time, so it may change. CodeError for a tenant that is not in it.
    """

    async def load(tenant_id: str) -> WorkerCode:
        try:
            found = codes[tenant_id]
        except KeyError:
            raise _missing(f"there is no code for tenant {tenant_id!r}") from None
        if isinstance(found, WorkerCode):
            return found
        return WorkerCode(main_module, dict(found), **more)

    return load


def from_folder(folder: str | Path, *, main_module: str = MAIN_MODULE, **more: object) -> Load:
    """Return a source of the files below a folder, read again for each call.

    `{tenant}` in the path stands for the tenant's id; without it all tenants run the same code.
    Files and folders that begin with a dot, caches, and links are left out; what comes after
    `{tenant}` in the path must not be a link, since the tenant may have made it.
    """

    async def load(tenant_id: str) -> WorkerCode:
        root = Path(_filled(str(folder), tenant_id))
        _check_links(str(folder), root)
        return await asyncio.to_thread(read_folder, root, main_module=main_module, **more)

    return load


def from_git(
    repository: str | Path,
    revision: str = "HEAD",
    *,
    folder: str = "",
    main_module: str = MAIN_MODULE,
    **more: object,
) -> Load:
    """Return a source of the files of a git repository on this machine at a revision.

    `revision` is a commit, a tag or a branch, which is looked up each time: a tenant whose branch
    has moved gets the new code. `repository` may be a folder inside one, and stands for that folder
    alone; `folder` goes on from there. `{tenant}` in `revision` or `folder` stands for the tenant's
    id; where ids are not yours to choose, write the whole name of the branch, as in
    `refs/heads/{tenant}`: an id may be the name of a tag or a commit, too. Nothing is checked out
    or fetched, and no file outside the repository is read; the program `git` has to be installed.
    """

    async def load(tenant_id: str) -> WorkerCode:
        return await read_revision(
            repository,
            _filled_revision(revision, tenant_id),
            folder=_filled(folder, tenant_id),
            main_module=main_module,
            **more,
        )

    return load


def read_folder(folder: Path, *, main_module: str = MAIN_MODULE, **more: Any) -> WorkerCode:
    """Return the files below a folder as code; raises CodeError for unreadable or too many
    files."""
    modules: dict[str, str | bytes] = {}
    size = 0
    try:
        if not folder.is_dir():
            raise _missing(f"{folder} is no folder")
        for name, data in _files(folder):
            size += len(data)
            _check_size(size, "the folder")  # tenants may read this, and no path of ours
            modules[name] = _content(name, data)
    except OSError as error:
        raise _missing(f"the code in {folder} cannot be read: {error}") from error
    return WorkerCode(main_module, dict(sorted(modules.items())), **more)


def _check_links(template: str, root: Path) -> None:
    """Raise CodeError where a part of the path below the tenant's own is a link."""
    parts = Path(template).parts
    own = next((i for i, part in enumerate(parts) if "{tenant}" in part), len(parts))
    for i in range(own + 2, len(root.parts) + 1):
        if Path(*root.parts[:i]).is_symlink():
            raise _missing(f"{root} leads through a link")


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and content of each plain file.

    A link that replaces a file meanwhile leads nowhere, too: folders are held open, and no link is
    ever followed.
    """
    for where, folders, files, descriptor in os.fwalk(folder, onerror=_raise):
        folders[:] = [name for name in folders if _is_code(name)]
        for name in filter(_is_code, files):
            data = _plain_file(name, descriptor)
            if data is not None:
                yield Path(where, name).relative_to(folder).as_posix(), data


def _plain_file(name: str, folder: int) -> bytes | None:
    """Return a file's content, up to one byte above the limit; None where it is no plain file."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        return None
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(MODULES_BYTES_MAX + 1)


def _raise(error: OSError) -> None:
    raise error


def _is_code(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


async def read_revision(
    repository: str | Path,
    revision: str = "HEAD",
    *,
    folder: str = "",
    main_module: str = MAIN_MODULE,
    **more: Any,
) -> WorkerCode:
    """Return the files of a repository at a revision as code; raises CodeError if unreadable."""
    _check_repository(repository)
    commit = await _commit(repository, revision)
    prefix = (await _git(repository, "rev-parse", "--show-prefix")).decode().rstrip("\n")
    tree = f"{commit}:{prefix}{_inside(folder)}"
    modules: dict[str, str | bytes] = {}
    entries = _entries(await _git(repository, "ls-tree", "-r", "-z", "--long", "--full-tree", tree))
    _check_size(sum(size for _, _, size in entries), f"{tree[:12]}…")
    wanted = "".join(f"{name}\n" for _, name, _ in entries).encode()
    data = await _git(repository, "cat-file", "--batch", given=wanted) if entries else b""
    begin = 0
    for path, _, size in entries:
        begin = data.index(b"\n", begin) + 1
        modules[path] = _content(path, data[begin : begin + size])
        begin += size + 1
    return WorkerCode(main_module, modules, **more)


def _check_repository(repository: str | Path) -> None:
    text = str(repository)
    if text.startswith("-"):
        raise _missing(f"{text!r} is no path of a repository")
    if _URL.match(text):
        # And it is not shown: what URLs hold beside a name is often a secret.
        raise _missing("a repository is a path on this machine, not a URL: clone it first")


async def _commit(repository: str | Path, revision: str) -> str:
    # "--end-of-options" says it too; a revision is never worth finding out what else git takes.
    if not revision or revision.startswith("-") or not revision.isprintable():
        raise _missing(f"{revision!r} is no revision: name a commit, a tag or a branch")
    options = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        return (await _git(repository, *options)).decode().strip()
    except CodeError as error:
        raise _missing(f"{repository} has no revision {revision!r}: {error.message}") from None


def _inside(folder: str) -> str:
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts:
        raise _missing(f"{folder!r} is no folder of a repository")
    return "" if str(path) == "." else str(path)


def _entries(listing: bytes) -> list[tuple[str, str, int]]:
    """Yield (path, object, size) of the plain files: no links, no submodules, nothing hidden."""
    found = []
    for entry in listing.split(b"\0")[:-1]:
        parts = _ENTRY.fullmatch(entry)
        if parts is None:
            raise _missing(f"git lists what is no file: {entry[:80]!r}")
        mode, kind, name, size, path = parts.groups()
        try:
            text = path.decode("utf-8")
        except UnicodeDecodeError:
            # Replaced letters would make one name of two.
            raise _missing(f"the name of a file is no UTF-8: {path[:200]!r}") from None
        if kind == b"blob" and mode != b"120000" and all(map(_is_code, text.split("/"))):
            found.append((text, name.decode(), int(size)))
    return found


async def _git(repository: str | Path, *arguments: str, given: bytes = b"") -> bytes:
    """Return what git prints; raises CodeError when it fails. No shell, prompts, hooks or
    network."""
    environment = {name: value for name, value in os.environ.items() if name not in _STRAYS}
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            "-C",
            str(repository),
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | _QUIET,
        )
    except OSError as error:
        raise _missing(f"git cannot be started: {error}") from error
    try:
        async with asyncio.timeout(_GIT_SECONDS_MAX):
            out, complaint = await process.communicate(given)
    except TimeoutError:
        raise _missing(f"git {arguments[0]} took longer than {_GIT_SECONDS_MAX:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = complaint.decode("utf-8", "replace").strip() or "nothing found"
        raise _missing(f"git {arguments[0]} in {repository}: {reason[:500]}")
    return out


def _content(path: str, data: bytes) -> str | bytes:
    if path.endswith(_TEXT):
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data
    return data


def _check_size(size: int, what: str) -> None:
    if size > MODULES_BYTES_MAX:
        raise CodeError(
            f"the files of {what} have {size:,} bytes, more than {MODULES_BYTES_MAX:,}",
            code="code.invalid",
        )


def _filled(template: str, tenant_id: str) -> str:
    """Return the path with the tenant's id in it; refuses an id that could lead elsewhere."""
    if "{tenant}" not in template:
        return template
    if tenant_id in ("", ".", "..") or "/" in tenant_id or "\\" in tenant_id or "\0" in tenant_id:
        raise _missing(f"the id of tenant {tenant_id!r} cannot be part of a path")
    return template.replace("{tenant}", tenant_id)


def _filled_revision(template: str, tenant_id: str) -> str:
    """Return what `_filled` does; refuses an id that would be more than a part of a name."""
    if "{tenant}" in template and (not _REVISION_SIGNS.isdisjoint(tenant_id) or ".." in tenant_id):
        raise _missing(f"the id of tenant {tenant_id!r} cannot be part of a revision")
    return _filled(template, tenant_id)


def _missing(message: str) -> CodeError:
    return CodeError(message, code="code.load_failed")
