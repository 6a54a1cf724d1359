"""The files of this repository and what they import."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

FACE = "dynamic_workflows"


FLOORS = ["eventlog", "loaders", "actors"]


def sources(folder: str) -> list[Path]:
    """The Python files of a top-level folder, each once: links are not followed."""
    found: list[Path] = []
    for where, folders, files in os.walk(ROOT / folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(where, name) for name in files if name.endswith(".py")]
    return sorted(found)


def imported(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, relative ones written out from the root."""
    inside = path.relative_to(ROOT).parent.parts
    package = [FACE, *(part for part in inside if part != FACE)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = above + ([node.module] if node.module else [])
            for alias in node.names:
                yield ".".join([*start, alias.name])


def room_of(path: Path) -> str:
    """The room that a file of a floor lies in."""
    return ".".join(path.relative_to(ROOT).parent.parts)


def rooms() -> set[str]:
    """The folders of all floors."""
    return {
        room_of(path)
        for floor in FLOORS
        for path in sources(floor)
        if room_of(path) != "loaders"  # Its only file is the mark of a package.
    }
