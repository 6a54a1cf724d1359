"""Output: how answers are printed; texts may come from tenants and must not steer a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer


def printable(text: str) -> str:
    """Text without what a terminal would take for commands."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def print_json(value: Any) -> None:
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
    from ..eventlog.sanitize import plain

    return plain(text.replace("\r\n", "\n")) if sys.stdout.isatty() else text
