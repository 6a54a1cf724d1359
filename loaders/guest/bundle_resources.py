"""Bundle files: the folders of a bundle, as `importlib.resources` and `pkgutil` ask for them.

Nothing of a bundle lies on a disk. Both libraries know what to do with loaders of that sort: the
first asks for a tree of `Traversable`, the second for an importer of each entry of `__path__`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..protocol.messages import Module

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class ModuleSpecs(Protocol):
    """The modules of a bundle, as an importer of its folders sees them."""

    def holds(self, full_name: str) -> bool:
        """Whether the bundle has a module of this private name."""
        ...

    def spec(self, full_name: str) -> ModuleSpec | None:
        """How to import the module, or None."""
        ...


class BundleFolder:
    """A file or folder of a bundle by its path; a `Traversable` of importlib.resources."""

    def __init__(self, files: Mapping[str, Module], path: str) -> None:
        self._files = files
        self._path = path

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.rpartition("/")[2]

    def iterdir(self) -> Iterator[BundleFolder]:
        """What lies in it, by name."""
        if not self.is_dir():
            raise NotADirectoryError(f"the bundle has no folder {self._path!r}")
        for name in _entries(self._files, self._path):
            yield self.joinpath(name)

    def is_dir(self) -> bool:
        """Whether files lie below it."""
        start = f"{self._path}/" if self._path else ""
        return any(path.startswith(start) for path in self._files)

    def is_file(self) -> bool:
        """Whether it has content."""
        return self._path in self._files

    def joinpath(self, *parts: object) -> BundleFolder:
        """What is below it under that path; it need not exist."""
        path = self._path.split("/") if self._path else []
        for part in "/".join(str(part) for part in parts).split("/"):
            if part == "..":
                raise ValueError("a path inside a bundle leads down only")
            if part not in ("", "."):
                path.append(part)
        return BundleFolder(self._files, "/".join(path))

    __truediv__ = joinpath

    def read_bytes(self) -> bytes:
        """Its content; FileNotFoundError if there is none."""
        if self._path not in self._files:
            kind = IsADirectoryError if self.is_dir() else FileNotFoundError
            raise kind(f"the bundle has no file {self._path!r}")
        return self._files[self._path].data

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """Its content as text, of UTF-8 unless told otherwise."""
        with self.open("r", encoding=encoding, errors=errors) as file:
            text: str = file.read()
        return text

    def open(
        self,
        mode: str = "r",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **_: object,
    ) -> Any:
        """A file object over its content, for reading."""
        if set(mode) - set("rbt") or "r" not in mode:
            raise ValueError(f"files of a bundle are opened for reading, not {mode!r}")
        raw = io.BytesIO(self.read_bytes())
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def __str__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return f"BundleFolder({self._path!r})"


class FolderImporter:
    """What `pkgutil` finds for an entry of a package's `__path__`."""

    def __init__(self, modules: ModuleSpecs, files: Mapping[str, Module], path: str) -> None:
        self._modules = modules
        self._files = files
        self._path = path

    def find_spec(self, fullname: str, target: object = None) -> ModuleSpec | None:
        """How to import a module by its private name, or None."""
        return self._modules.spec(fullname) if self._modules.holds(fullname) else None

    def invalidate_caches(self) -> None:
        """A bundle never changes."""

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """(name, whether it is a package) of the modules of Python in the folder."""
        start = f"{self._path}/" if self._path else ""
        found: dict[str, bool] = {}
        for name in _entries(self._files, self._path):
            if f"{start}{name}/__init__.py" in self._files:
                found[name] = True
            elif name.endswith(".py") and name != "__init__.py":
                found.setdefault(name.removesuffix(".py"), False)
        for name in sorted(found):
            if name.isidentifier():
                yield prefix + name, found[name]


def _entries(files: Mapping[str, Module], folder: str) -> list[str]:
    start = f"{folder}/" if folder else ""
    return sorted(
        {path[len(start) :].partition("/")[0] for path in files if path.startswith(start)}
    )
