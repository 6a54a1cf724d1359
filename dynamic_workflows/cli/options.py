"""Command options: what commands ask for alike, once; each says which of them it takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .app import LOG_VARIABLE, cli

TenantArg = Annotated[str, typer.Argument(metavar="TENANT")]
IdArg = Annotated[str, typer.Argument(metavar="ID")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_OPTIONS: dict[str, Any] = {
    "log": Annotated[
        str, typer.Option("--log", envvar=LOG_VARIABLE, help="Path or URI of the event log.")
    ],
    "workflow": Annotated[str, typer.Option("--workflow", help="The workflow class.")],
    "skip_damaged": Annotated[
        bool,
        typer.Option("--skip-damaged", help="Answer without the tenants whose log is damaged."),
    ],
    "address": Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="DYNAMIC_WORKFLOWS_ADDRESS",
            help='"auto", or the address of a Ray cluster; without it the platform that is at work '
            "on the log is found, or an embedded one started.",
        ),
    ],
    "namespace": Annotated[str, typer.Option("--namespace", help="The platform's Ray namespace.")],
}


@dataclass(frozen=True)
class CommandOptions:
    """Where the log and its platform are, and what a command is about."""

    log: str = "./data"
    workflow: str = "TenantWorkflow"
    skip_damaged: bool = False
    address: str | None = None
    namespace: str = "dynamic-workflows"


LOOKING = ("log", "skip_damaged")
ONE_STORED = ("log", "workflow")
STEERING = ("log", "address", "namespace")
ONE_LIVE = ("workflow", *STEERING)


def command(*taken: str, name: str | None = None, alias: str | None = None) -> Callable[[Any], Any]:
    """Register a command `function(options, …)` that takes these fields of its options.

    `alias` is a second name, which `--help` does not list.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        run = _with_options(function, taken)
        cli.command(name)(run)
        if alias is not None:
            cli.command(alias, hidden=True)(run)
        return function

    return register


def _with_options(function: Callable[..., None], taken: tuple[str, ...]) -> Callable[..., None]:
    """The function as Typer reads it: its own parameters, then an option for each field."""

    def run(**given: Any) -> None:
        options = CommandOptions(**{field: given.pop(field) for field in taken})
        function(options, **given)

    hints = typing.get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [one.replace(annotation=hints[one.name]) for one in own]
    parameters += [
        inspect.Parameter(
            field,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(CommandOptions, field),
            annotation=_OPTIONS[field],
        )
        for field in taken
    ]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
