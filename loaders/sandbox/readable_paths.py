"""Readable paths: the files that an isolate may read: what imports and tracebacks need, nothing
else.

They are the standard library, the installed packages that the zygote has imported, and time zones.
Where packages are installed inside the standard library, those not imported stay hidden.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Readable:
    """Real paths, sorted."""

    stdlib: list[str]
    """Directories of the standard library, each without its directories of installed packages."""
    others: list[str]
    """Files and directories as they are, none below another or below a directory of `stdlib`."""

    @property
    def hidden(self) -> list[str]:
        """Return the directories in `stdlib` that must not show."""
        places = (os.path.join(path, name) for path in self.stdlib for name in _INSTALLED)
        return [place for place in places if os.path.isdir(place)]

    def entries(self) -> list[str]:
        """Return `stdlib` and `others`, with the standard library's entries one by one."""
        inside = (
            os.path.join(path, name)
            for path in self.stdlib
            for name in os.listdir(path)
            if name not in _INSTALLED
        )
        # A link may lead out of the directory; one that does not is covered by where it leads.
        return [*(path for path in inside if not os.path.islink(path)), *self.others]


def find_readable(stdlib: list[str]) -> Readable:
    """Return the files of the modules that this process has imported, and of their lazy imports."""
    directories = _topmost({os.path.realpath(path) for path in stdlib if os.path.isdir(path)})
    others = _imported()
    with contextlib.suppress(ImportError):
        import zoneinfo

        others.update(os.path.realpath(path) for path in zoneinfo.TZPATH)
    outside = {
        path for path in others if os.path.exists(path) and not _is_covered(path, directories)
    }
    return Readable(directories, _topmost(outside))


def _imported() -> set[str]:
    paths: set[str] = set()
    for module in list(sys.modules.values()):
        places = list(getattr(module, "__path__", None) or ())
        if not places and getattr(module, "__file__", None):
            places = [module.__file__]
        paths.update(os.path.realpath(path) for path in places)
    return paths


def is_below(path: str, directory: str) -> bool:
    """Return whether the path is the directory or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _is_covered(path: str, stdlib: list[str]) -> bool:
    return any(
        is_below(path, directory)
        and not any(is_below(path, os.path.join(directory, name)) for name in _INSTALLED)
        for directory in stdlib
    )


def _topmost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(paths):
        if not (kept and is_below(path, kept[-1])):
            kept.append(path)
    return kept
