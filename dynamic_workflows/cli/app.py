"""App: the command line as Typer holds it, and how what is wrong reaches the shell."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..eventlog.errors import WorkflowsError
from .output import printable

LOG_VARIABLE = "DYNAMIC_WORKFLOWS_LOG"

cli = typer.Typer(
    name="dynamic-workflows",
    help="Durable, multi-tenant workflows whose code is loaded at run time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cli.callback()
def common(
    context: typer.Context,
    log: Annotated[str | None, typer.Option("--log", help="As on each command.")] = None,
) -> None:
    """Durable, multi-tenant workflows whose code is loaded at run time."""
    if log is not None:
        before = os.environ.get(LOG_VARIABLE)
        os.environ[LOG_VARIABLE] = log
        context.call_on_close(lambda: _restore(before))


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(LOG_VARIABLE, None)
    else:
        os.environ[LOG_VARIABLE] = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors go to stderr and make the exit status 1."""
    try:
        cli(arguments, standalone_mode=True)
    except WorkflowsError as error:
        typer.echo(f"error ({error.code}): {printable(error.message)}", err=True)
        sys.exit(1)
    except TimeoutError:
        typer.echo("error: the time is up", err=True)
        sys.exit(1)
