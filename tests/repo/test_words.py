"""The words: the glossary names what each room holds, and replaced words stay away."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT
from tree import FLOORS, rooms, sources

_TEXT = (ROOT / "docs/glossary.md").read_text("utf-8")
GLOSSARY = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", _TEXT, re.MULTILINE))

REPLACED = {
    "acquaintances": "watchers",
    "adoption": "assignment",
    "crowd": "scaling",
    "errands": "background tasks",
    "heft": "memory budget",
    "leavers": "pending ends",
    "leaver": "pending end",
    "patience": "back-off",
    "pump": "commit pipeline",
    "summaries": "index entries",
    "naps": "virtual sleeps",
    "nursery": "zygote server",
    "spares": "blank processes",
    "survey": "snapshot",
    "ward": "listener",
    "wards": "listeners",
    "weigh": "count, check or sample",
    "wish": "request",
}
"""Words that were names in this tree, and the field's words that took their places."""


def names(path: Path) -> Iterator[str]:
    """Every name that a file defines: classes, functions, parameters, variables, attributes."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def parts(name: str) -> list[str]:
    """The words of a name, in small letters: `_LostWards` gives lost and wards."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().strip("_").split("_")


def files_of(room: str) -> list[Path]:
    """The Python files of a room itself, without those of rooms below it."""
    return sorted((ROOT / room.replace(".", "/")).glob("*.py"))


def replaced_names(room: str) -> list[str]:
    """The names in a room that hold a replaced word."""
    return [
        f"{path.name}: {name}"
        for path in files_of(room)
        for name in names(path)
        if not REPLACED.keys().isdisjoint(parts(name))
    ]


def test_the_glossary_names_every_room() -> None:
    assert GLOSSARY.keys() == rooms()


@pytest.mark.parametrize("room", sorted(GLOSSARY))
def test_the_classes_that_the_glossary_names_lie_in_their_room(room: str) -> None:
    named = set(re.findall(r"`([A-Z]\w+)`", GLOSSARY[room]))
    found = {name for path in files_of(room) for name in names(path)}
    assert named <= found


@pytest.mark.parametrize("room", sorted(rooms()))
def test_replaced_words_do_not_come_back_as_names(room: str) -> None:
    assert replaced_names(room) == []


def test_a_module_is_not_named_by_a_replaced_word() -> None:
    stems = {path.stem: path for floor in FLOORS for path in sources(floor)}
    assert [stem for stem in stems if not REPLACED.keys().isdisjoint(parts(stem))] == []


def test_the_words_of_a_name_are_told_apart() -> None:
    assert parts("_LostWards") == ["lost", "wards"]
    assert parts("take_slot_in_turn") == ["take", "slot", "in", "turn"]
