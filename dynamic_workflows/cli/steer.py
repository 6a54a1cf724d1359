"""Steer: the commands that change something, through the platform that is at work on the log.

Without `--address`, and where no platform is at work, an embedded one starts for the command and
goes on with every open instance of the log while it lasts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from ..eventlog.errors import InvalidError, Unavailable
from .log_files import claim_at_work
from .options import ONE_LIVE, STEERING, CommandOptions, IdArg, TenantArg, command
from .output import print_json, printable


def steer(
    options: CommandOptions,
    work: Callable[[Any], Coroutine[Any, Any, Any]],
    *,
    may_start: bool = True,
) -> Any:
    """Do some work with the platform on the log; without one, with one that lasts as long."""

    async def run() -> Any:
        from ..platform import connect

        log, address, namespace = options.log, options.address, options.namespace
        if address is None:
            found = await claim_at_work(log)
            if found is not None:
                address = None if found.is_embedded else found.address
                namespace = found.namespace
            elif may_start:
                _say_that_one_starts(log)
            else:
                raise Unavailable(
                    f"no platform is at work on the log at {log}: start one, or leave out --live"
                )
        async with connect(log, address=address, namespace=namespace) as platform:
            return await work(platform)

    return asyncio.run(run())


def _say_that_one_starts(log: str) -> None:
    note = f"note: no platform is at work on the log at {log}: one starts for this command"
    typer.echo(note, err=True)


def _on_instance(
    options: CommandOptions, tenant: str, id: str, change: Callable[[Any], Coroutine[Any, Any, Any]]
) -> Any:
    """Do some work with the handle of one instance."""

    async def work(platform: Any) -> Any:
        return await change(await platform.tenant(tenant).workflow(options.workflow).get(id))

    return steer(options, work)


def _value(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidError(f"{name} is not JSON: {error}") from None


@command(*ONE_LIVE)
def create(
    options: CommandOptions,
    tenant: TenantArg,
    id: Annotated[str | None, typer.Option("--id", help="The instance's id.")] = None,
    params: Annotated[str, typer.Option(help="The params, as JSON.")] = "{}",
    wait: Annotated[bool, typer.Option(help="Wait for the result and print it.")] = False,
) -> None:
    """Create an instance of a tenant's (deployed) code."""
    given = _value(params, "--params")

    async def work(platform: Any) -> None:
        binding = platform.tenant(tenant).workflow(options.workflow)
        instance = await binding.create(id=id, params=given)
        typer.echo(instance.id)
        if wait:
            print_json(await instance.result())

    steer(options, work)


@command(*ONE_LIVE)
def result(
    options: CommandOptions,
    tenant: TenantArg,
    id: IdArg,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.")] = None,
) -> None:
    """Wait for an instance and print its output."""
    print_json(_on_instance(options, tenant, id, lambda one: one.result(timeout)))


@command(*STEERING)
def deploy(
    options: CommandOptions,
    tenant: TenantArg,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    main_module: Annotated[str, typer.Option("--main", help="The main module.")] = "index.py",
    revision: Annotated[
        str | None,
        typer.Option(help="A commit, tag or branch: the folder as git knows it there."),
    ] = None,
) -> None:
    """Put the files of a folder in place as a tenant's code."""
    code = _code_in(folder, main_module, revision)
    typer.echo(steer(options, lambda platform: platform.tenant(tenant).deploy(code)))


def _code_in(folder: Path, main_module: str, revision: str | None) -> Any:
    from ..loaders.bundles.sources import read_folder, read_revision

    if revision is None:
        return read_folder(folder, main_module=main_module)
    return asyncio.run(read_revision(folder, revision, main_module=main_module))


@command(*STEERING)
def reload(options: CommandOptions, tenant: TenantArg) -> None:
    """Forget what was deployed; the platform's own callback says the code again."""
    steer(options, lambda platform: platform.tenant(tenant).reload())


@command(*ONE_LIVE)
def pause(options: CommandOptions, tenant: TenantArg, id: IdArg) -> None:
    """Pause an instance."""
    _on_instance(options, tenant, id, lambda one: one.pause())


@command(*ONE_LIVE)
def resume(options: CommandOptions, tenant: TenantArg, id: IdArg) -> None:
    """Let a paused or parked instance go on."""
    _on_instance(options, tenant, id, lambda one: one.resume())


@command(*ONE_LIVE)
def terminate(
    options: CommandOptions,
    tenant: TenantArg,
    id: IdArg,
    rollback: Annotated[bool, typer.Option(help="Undo finished steps first.")] = False,
) -> None:
    """End an instance for good."""
    _on_instance(options, tenant, id, lambda one: one.terminate(rollback=rollback))


@command(*ONE_LIVE)
def restart(
    options: CommandOptions,
    tenant: TenantArg,
    id: IdArg,
    from_step: Annotated[str | None, typer.Option(help="Begin at this step.")] = None,
    from_count: Annotated[int, typer.Option(help="Its occurrence.")] = 1,
    from_type: Annotated[str, typer.Option(help="do, sleep or wait_for_event.")] = "do",
) -> None:
    """Run an instance again, from the top or from a step."""
    target = None
    if from_step is not None:
        target = {"name": from_step, "count": from_count, "type": from_type}
    _on_instance(options, tenant, id, lambda one: one.restart(from_=target))


@command(*ONE_LIVE, name="send-event")
def send_event(
    options: CommandOptions,
    tenant: TenantArg,
    id: IdArg,
    type: Annotated[str, typer.Option("--type", help="The event's type.")],
    payload: Annotated[str, typer.Option(help="The payload, as JSON.")] = "null",
) -> None:
    """Send an event to an instance."""
    value = _value(payload, "--payload")
    _on_instance(options, tenant, id, lambda one: one.send_event(type, value))


@command(*ONE_LIVE)
def delete(
    options: CommandOptions,
    tenant: TenantArg,
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
) -> None:
    """Delete instances and everything of them."""

    async def work(platform: Any) -> Any:
        return await platform.tenant(tenant).workflow(options.workflow).delete_batch(ids)

    outcome = steer(options, work)
    for name in outcome.deleted:
        typer.echo(f"deleted {name}")
    for error in outcome.errors:
        typer.echo(f"{error.id}: {error.code}: {printable(error.message)}", err=True)
    if outcome.errors:
        raise typer.Exit(1)
