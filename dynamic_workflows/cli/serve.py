"""Serve: the command that answers HTTP beside a platform, until a signal ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from .options import STEERING, CommandOptions, command


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
        float, typer.Option(min=0, help="Seconds until changed code is seen.")
    ] = 60.0,
) -> None:
    """Answer HTTP (docs/http.md) beside a platform on the log, until Ctrl-C.

    Example: dynamic-workflows serve --log data --tenants ./tenants --code-ttl 0
    """
    from ..actors.config import PlatformConfig
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
            config=PlatformConfig(code_ttl_seconds=code_ttl),
            said=typer.echo,
        )
    )
