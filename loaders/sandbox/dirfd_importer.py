"""Dirfd importer: imports through directories that were opened before the process lost access.

Where an isolate changes its user, and the interpreter lies below a directory that only the old user
may enter, paths lead nowhere any more. Open directories still do, and Landlock still guards them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from . import linux
from .readable_paths import Readable, is_below


class DescriptorFinder(MetaPathFinder):
    """Finds pure Python modules below open directories, at the paths where they were opened."""

    def __init__(self, readable: Readable) -> None:
        places = [*readable.stdlib, *(path for path in readable.others if os.path.isdir(path))]
        self._directories = {path: linux.move_up(os.open(path, os.O_PATH)) for path in places}

    @property
    def fds(self) -> list[int]:
        """Return the open directories."""
        return list(self._directories.values())

    def install(self) -> None:
        """Use this finder for imports, instead of paths."""
        sys.meta_path[:] = [
            finder for finder in sys.meta_path if finder is not importlib.machinery.PathFinder
        ]
        sys.meta_path.append(self)

    def read(self, path: str) -> bytes:
        """Return the contents of a file; raises OSError."""
        directory, name = self._split(path)
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
            return file.read()

    def stat(self, path: str) -> os.stat_result:
        """Return what os.stat does."""
        directory, name = self._split(path)
        return os.stat(name, dir_fd=directory)

    def _split(self, path: str) -> tuple[int, str]:
        real = os.path.normpath(path)
        for place, fd in self._directories.items():
            if is_below(real, place):
                return fd, os.path.relpath(real, place)
        raise FileNotFoundError(path)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's specification, or None."""
        name = fullname.rpartition(".")[2]
        for directory in path if path is not None else sys.path:
            for file, is_package in ((f"{name}/__init__.py", True), (f"{name}.py", False)):
                location = os.path.join(os.path.normpath(directory), file)
                try:
                    self.stat(location)
                except OSError:
                    continue
                return importlib.util.spec_from_file_location(
                    fullname,
                    location,
                    loader=_Loader(fullname, location, self),
                    submodule_search_locations=[os.path.dirname(location)] if is_package else None,
                )
        return None


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads source and bytecode through the finder; writes nothing."""

    def __init__(self, fullname: str, path: str, finder: DescriptorFinder) -> None:
        super().__init__(fullname, path)
        self._finder = finder

    def get_data(self, path: str) -> bytes:
        return self._finder.read(path)

    def path_stats(self, path: str) -> dict[str, float]:
        status = self._finder.stat(path)
        return {"mtime": status.st_mtime, "size": status.st_size}

    def set_data(self, path: str, data: object, *, _mode: int = 0o666) -> None:
        return None
