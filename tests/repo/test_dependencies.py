"""What an installation brings along is used, and what is used is brought along."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache

import pytest
from paths import ROOT
from tree import FACE, FLOORS, sources

NOT_IMPORTED = {"pytz": "DuckDB imports it where a query gives instants to Python"}
OF_THEIRS = {
    "pydantic_core": "pydantic has it",
    "grpc": "Ray has it",
    "_typeshed": "the type checker's own",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {re.split(r"[^A-Za-z0-9_.-]", one)[0] for one in PROJECT["dependencies"]}


@cache
def imported() -> set[str]:
    """The top-level modules that the product imports, late imports included."""
    found = set()
    for folder in (FACE, *FLOORS):
        for path in sources(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(str(node.module).partition(".")[0])
    return found - {FACE} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", sorted(DECLARED - set(NOT_IMPORTED)))
def test_a_dependency_is_imported(name: str) -> None:
    assert name in imported()


def test_what_is_imported_is_a_dependency() -> None:
    assert imported() - DECLARED - set(OF_THEIRS) == set()
