"""Types: `Any` becomes rarer, and calls between actors are checked by their service's Protocol."""

from __future__ import annotations

import ast
import re

import pytest
from paths import ROOT
from tree import FLOORS, sources

ANY_LINES_MAX = 720
"""Lines of the product that name `Any`. Lower it with each one that goes."""
BY_NAME = {
    "dynamic_workflows/__init__.py": "names of the face, loaded when they are asked for",
    "eventlog/__init__.py": "names of the face, loaded when they are asked for",
    "eventlog/errors.py": "details of an error",
    "eventlog/query/reader.py": "a DuckDB connection",
    "loaders/bundles/worker.py": "methods of a tenant's entrypoint",
    "loaders/guest/env.py": "what the platform granted, and methods of its services",
    "loaders/sdk/attr_view.py": "keys of a value",
}
"""Where a name that is not known before may be asked for, and what it names."""


def product() -> dict[str, str]:
    """The product's files, with their text."""
    floors = [*FLOORS, "dynamic_workflows"]
    paths = {path for floor in floors for path in sources(floor)}
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(paths)}


def test_any_does_not_spread() -> None:
    lines = [line for text in product().values() for line in text.splitlines()]
    assert sum(bool(re.search(r"\bAny\b", line)) for line in lines) <= ANY_LINES_MAX


def test_no_class_forwards_calls_by_name() -> None:
    found = {
        name
        for name, text in product().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
    }
    assert found == BY_NAME.keys()


@pytest.mark.parametrize("room", ["code", "placement", "timers", "diagnosis", "tenant", "cluster"])
def test_actors_are_called_by_the_methods_of_their_service(room: str) -> None:
    by_name = [
        f"{path.name}: {ast.unparse(node)}"
        for path in (ROOT / "actors" / room).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "call"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    assert by_name == []
