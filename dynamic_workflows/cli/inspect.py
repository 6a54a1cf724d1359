"""Inspect: the commands that look. They read the log's files, start nothing and write nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..eventlog.errors import InstanceError, InvalidError
from .log_files import check_exists, check_log, claim_at_work, no_log, query_log
from .options import (
    LOOKING,
    ONE_LIVE,
    ONE_STORED,
    AsJson,
    CommandOptions,
    IdArg,
    TenantArg,
    command,
)
from .output import print_json, print_table, printable, terminal_text


@command(*LOOKING)
def sql(
    options: CommandOptions,
    query: Annotated[str, typer.Argument(help="Over events, instances, steps, attempts, waits.")],
    tenant: Annotated[str | None, typer.Option(help="Show this tenant's rows alone.")] = None,
    format: Annotated[str, typer.Option(help="table, csv, json or parquet.")] = "table",
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which the query is stopped.")
    ] = 60.0,
    memory_mb: Annotated[int, typer.Option(min=16, help="MiB that the query works in.")] = 1024,
    isolation: Annotated[
        str, typer.Option(help="sandbox or unsafe-none: around the process of --tenant.")
    ] = "sandbox",
) -> None:
    """Ask the log a question in SQL: one SELECT. With --tenant, as that tenant may ask it."""
    from ..eventlog.query.render import FORMATS, render

    chosen = next((one for one in FORMATS if one == format), None)
    if chosen is None:
        raise InvalidError(f"{format!r} is no output format: use {', '.join(FORMATS)}")
    if isolation not in ("sandbox", "unsafe-none"):
        raise InvalidError(f"{isolation!r} is no isolation: use sandbox or unsafe-none")
    limits = {"timeout_s": timeout, "memory_mb": memory_mb, "isolation": isolation}
    table = query_log(
        options.log,
        query,
        tenant=tenant,
        skip_damaged=options.skip_damaged,
        is_trusted=False,
        **limits,
    )
    _put(render(table, chosen), format, output)


def _put(shown: str | bytes, format: str, output: Path | None) -> None:
    """Write an answer to a file, or to stdout."""
    if output is not None:
        try:
            output.write_bytes(shown if isinstance(shown, bytes) else shown.encode())
        except OSError as error:
            raise InvalidError(f"{output} cannot be written: {error.strerror}") from None
    elif isinstance(shown, bytes):
        if sys.stdout.isatty():
            raise InvalidError(f"{format} is no text for a terminal: give --output FILE")
        sys.stdout.buffer.write(shown)
    else:
        # Colour, lest what looks like it is cut out of the values where no terminal reads them.
        typer.echo(terminal_text(shown), nl=False, color=True)


@command("log")
def verify(options: CommandOptions) -> None:
    """Prove that the log is whole; the exit status is 1 when it is not, or when there is none."""
    from ..eventlog.log.verify import verify as verify_log
    from ..loaders.bundles.code_keys import check_stored

    check_exists(options.log)
    report = verify_log(options.log, check_bundle=check_stored)
    if not report.streams and report.ok:
        raise no_log(f"{report.root} holds no log, so nothing was verified")
    typer.echo("\n".join(report.lines))
    if not report.ok:
        raise typer.Exit(1)


@command(*LOOKING)
def tenants(options: CommandOptions, as_json: AsJson = False) -> None:
    """The tenants of the log, with how many instances each has."""
    found = query_log(
        options.log,
        "select tenant_id, count(*) as instances, "
        "count(*) filter (where status not in ('complete', 'errored', 'terminated')) as open, "
        "max(created_at) as newest from instances group by 1 order by 1",
        skip_damaged=options.skip_damaged,
    )
    print_table(found, as_json=as_json)


@command("log", alias="list")
def ls(
    options: CommandOptions,
    tenant: TenantArg,
    status: Annotated[str | None, typer.Option(help="Only instances of this status.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only this workflow class.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 25,
    as_json: AsJson = False,
) -> None:
    """A tenant's instances, newest first."""
    from ..actors.instances.identifiers import check_statuses, check_workflow_name

    check_statuses(status)
    if workflow is not None:
        check_workflow_name(workflow)
    found = query_log(
        options.log,
        "select instance_id, workflow, status, created_at, ended_at, steps from instances "
        "where tenant_id = ? and (? is null or status = ?) and (? is null or workflow = ?) "
        "order by created_at desc, instance_id limit ?",
        [tenant, status, status, workflow, workflow, limit],
        tenant=tenant,
    )
    print_table(found, as_json=as_json)


@command(*ONE_STORED)
def status(options: CommandOptions, tenant: TenantArg, id: IdArg) -> None:
    """An instance and its steps."""
    which = [tenant, options.workflow, id]
    found = query_log(
        options.log,
        "select * from instances where tenant_id = ? and workflow = ? and instance_id = ?",
        which,
        tenant=tenant,
    ).to_pylist()
    if not found:
        raise _no_instance(*which)
    steps = query_log(
        options.log,
        "select kind, step, count, status, attempts, started_at, ended_at, output, error_name, "
        "error_message from steps where tenant_id = ? and workflow = ? and instance_id = ? "
        "order by started_at, step, count",
        which,
        tenant=tenant,
    ).to_pylist()
    print_json({**found[0], "steps": steps})


@command(*ONE_STORED)
def history(options: CommandOptions, tenant: TenantArg, id: IdArg, as_json: AsJson = False) -> None:
    """The events of an instance, every run of it."""
    which = [tenant, options.workflow, id]
    table = query_log(
        options.log,
        "select seq, ts, run, type, step, count, attempt, payload from events "
        "where tenant_id = ? and workflow = ? and instance_id = ? order by seq",
        which,
        tenant=tenant,
    )
    if not table.num_rows:
        raise _no_instance(*which)
    print_table(table, as_json=as_json)


@command(*ONE_LIVE)
def why(
    options: CommandOptions,
    tenant: TenantArg,
    id: IdArg,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the platform that is at work on the log.")
    ] = False,
) -> None:
    """Why an instance is where it is, as the log's files tell it."""
    found = asyncio.run(_stored_why(options, tenant, id)) if not live else None
    if found is None:
        from .steer import steer

        found = steer(
            options,
            lambda platform: platform.why(tenant, id, options.workflow),
            may_start=False,
        )
    typer.echo(f"{found.code}: {printable(found.text)}")


async def _stored_why(options: CommandOptions, tenant: str, id: str) -> Any:
    from ..actors.diagnosis.stored_explanation import explain_stored
    from ..eventlog.clock import SystemClock
    from ..eventlog.store.locations import root_of
    from ..eventlog.store.open_store import open_store

    check_log(options.log, tenant)
    store = open_store(root_of(options.log))
    try:
        at_work = await claim_at_work(options.log)
        return await explain_stored(
            store, tenant, id, options.workflow, clock=SystemClock(), at_work=at_work
        )
    finally:
        await store.close()


def _no_instance(tenant: str, workflow: str, id: str) -> InstanceError:
    return InstanceError(
        f"tenant {tenant!r} has no instance {id!r} of {workflow}: `dynamic-workflows ls {tenant}` "
        "lists what it has; --workflow names another class",
        code="instance.not_found",
    )
