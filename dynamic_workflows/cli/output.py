"""Output: how answers are printed; texts may come from tenants and must not steer a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from ..eventlog import sanitize


def printable(text: str) -> str:
    """Text in which what a terminal would take for commands is written out."""
    return sanitize.printable(text, keep="\n")


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON does not know is printed as its text."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=True))


def print_table(table: Any, *, as_json: bool = False) -> None:
    """Print an Arrow table, as columns or as a JSON list of its rows."""
    from ..eventlog.query.render import render

    if as_json:
        print_json(table.to_pylist())
    else:
        typer.echo(render(table, "table"), nl=False)


def terminal_text(text: str) -> str:
    """Text for stdout: a file or a pipe gets every byte; a terminal is not steered by it."""
    return sanitize.plain(text.replace("\r\n", "\n")) if sys.stdout.isatty() else text
