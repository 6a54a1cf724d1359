"""Serve: the command that answers HTTP beside a platform, until a signal ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import STEERING, CommandOptions, command

if TYPE_CHECKING:
    from ..actors.settings.platform_config import PlatformConfig


@command(*STEERING)
def serve(
    options: CommandOptions,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8080,
    keys: Annotated[
        Path | None,
        typer.Option(help='A JSON file {"KEY": "operator", …}; needed beyond this machine.'),
    ] = None,
    load: Annotated[
        str | None, typer.Option(help="MODULE:FUNCTION that answers a tenant's code.")
    ] = None,
    tenants: Annotated[
        Path | None, typer.Option(help="A folder with a folder of code for each tenant.")
    ] = None,
    code_ttl: Annotated[
        float | None, typer.Option(min=0, help="Seconds until changed code is seen; default 60.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML or JSON file of settings (docs/operations.md).")
    ] = None,
) -> None:
    """Answer HTTP (docs/http.md) beside a platform on the log, until Ctrl-C.

    Example: dynamic-workflows serve --log data --tenants ./tenants --code-ttl 0
    """
    from ..web.serve import keys_of, loader_of
    from ..web.serve import serve as serve_platform

    asyncio.run(
        serve_platform(
            options.log,
            host=host,
            port=port,
            keys=None if keys is None else keys_of(keys),
            load=loader_of(load, tenants),
            address=options.address,
            namespace=options.namespace,
            config=_settings(config, code_ttl),
            said=typer.echo,
        )
    )


def _settings(path: Path | None, code_ttl: float | None) -> PlatformConfig:
    from ..actors.settings.config_file import read_config
    from ..actors.settings.platform_config import PlatformConfig

    settings = PlatformConfig() if path is None else read_config(path)
    if code_ttl is None:
        return settings
    return settings.model_copy(update={"code_ttl_seconds": code_ttl})
