"""Command line: look into a log beside whoever works on it, and steer tenants through a platform.

Looking (`sql`, `verify`, `tenants`, `ls`, `status`, `history`, `why`) reads the log's files alone:
it starts nothing, owns nothing and writes nothing. Steering goes through the platform at
`--address`, or the one that is at work on the log; where there is none, an embedded one starts for
the command and goes on with every open instance of the log while it lasts.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from .eventlog.errors import InstanceError, InvalidError, Unavailable, WorkflowsError

cli = typer.Typer(
    name="dynamic-workflows",
    help="Durable, multi-tenant workflows whose code is loaded at run time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LOG_VARIABLE = "DYNAMIC_WORKFLOWS_LOG"

Log = Annotated[
    str,
    typer.Option("--log", envvar=_LOG_VARIABLE, help="Path or URI of the event log."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="DYNAMIC_WORKFLOWS_ADDRESS",
        help='"auto", or the address of a Ray cluster; without it the platform that is at work '
        "on the log is found, or an embedded one started.",
    ),
]
Namespace = Annotated[str, typer.Option("--namespace", help="The platform's Ray namespace.")]
Workflow = Annotated[str, typer.Option("--workflow", help="The workflow class.")]
TenantArg = Annotated[str, typer.Argument(metavar="TENANT")]
IdArg = Annotated[str, typer.Argument(metavar="ID")]
SkipDamaged = Annotated[
    bool, typer.Option("--skip-damaged", help="Answer without the tenants whose log is damaged.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_LOG = "./data"
DEFAULT_NAMESPACE = "dynamic-workflows"
DEFAULT_WORKFLOW = "TenantWorkflow"


@cli.callback()
def common(
    context: typer.Context,
    log: Annotated[str | None, typer.Option("--log", help="As on each command.")] = None,
) -> None:
    """Durable, multi-tenant workflows whose code is loaded at run time."""
    if log is not None:
        before = os.environ.get(_LOG_VARIABLE)
        os.environ[_LOG_VARIABLE] = log
        context.call_on_close(lambda: _restore(before))


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(_LOG_VARIABLE, None)
    else:
        os.environ[_LOG_VARIABLE] = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors go to stderr and make the exit status 1."""
    try:
        cli(arguments, standalone_mode=True)
    except WorkflowsError as error:
        typer.echo(f"error ({error.code}): {_plain(error.message)}", err=True)
        sys.exit(1)
    except TimeoutError:
        typer.echo("error: the time is up", err=True)
        sys.exit(1)


def _plain(text: str) -> str:
    """Text without what a terminal would take for commands: it may come from a tenant."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _print(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=True))


# --- looking -------------------------------------------------------------------------------------


@cli.command()
def sql(
    query: Annotated[str, typer.Argument(help="Over events, instances, steps, attempts, waits.")],
    log: Log = DEFAULT_LOG,
    tenant: Annotated[str | None, typer.Option(help="Show this tenant's rows alone.")] = None,
    format: Annotated[str, typer.Option(help="table, csv, json or parquet.")] = "table",
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which the query is stopped.")
    ] = 60.0,
    memory_mb: Annotated[int, typer.Option(min=16, help="MiB that the query works in.")] = 1024,
    skip_damaged: SkipDamaged = False,
    isolation: Annotated[
        str, typer.Option(help="sandbox or unsafe-none: around the process of --tenant.")
    ] = "sandbox",
) -> None:
    """Ask the log a question in SQL: one SELECT. With --tenant, as that tenant may ask it."""
    from .eventlog.query.render import FORMATS, render

    chosen = next((one for one in FORMATS if one == format), None)
    if chosen is None:
        raise InvalidError(f"{format!r} is no output format: use {', '.join(FORMATS)}")
    if isolation not in ("sandbox", "unsafe-none"):
        raise InvalidError(f"{isolation!r} is no isolation: use sandbox or unsafe-none")
    limits = {"timeout_s": timeout, "memory_mb": memory_mb, "isolation": isolation}
    table = _query(log, query, tenant=tenant, skip_damaged=skip_damaged, is_trusted=False, **limits)
    shown = render(table, chosen)
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
        typer.echo(_shown(shown), nl=False, color=True)


def _shown(text: str) -> str:
    """A file or a pipe gets every byte; what goes to a terminal must not steer it."""
    from .eventlog.sanitize import plain

    return plain(text.replace("\r\n", "\n")) if sys.stdout.isatty() else text


def _query(
    log: str,
    query: str,
    params: Any = None,
    *,
    tenant: str | None = None,
    skip_damaged: bool = False,
    is_trusted: bool = True,
    **limits: Any,
) -> Any:
    from .eventlog.query.reader import Reader

    _check_log(log, tenant)
    reader = Reader(log, tenant=tenant, is_trusted=is_trusted, **limits)
    try:
        table = reader.query(query, params, skip_damaged=skip_damaged)
    finally:
        reader.close()
    left_out = json.loads((table.schema.metadata or {}).get(b"left_out", b"{}"))
    for name, reason in left_out.items():
        typer.echo(_plain(f"warning: tenant {name!r} is left out: {reason}"), err=True)
    return table


def _check_exists(log: str) -> None:
    """Raises `log.not_found` for a place that is not there."""
    path = log.removeprefix("file://")
    if "://" not in path and not Path(path).is_dir():
        problem = "is no directory" if Path(path).exists() else "does not exist"
        raise _no_log(f"{path} {problem}")


def _check_log(log: str, tenant: str | None = None) -> None:
    """Raises `log.not_found` and `tenant.not_found`, where an empty answer would say nothing."""
    from .actors.instances.identifiers import check_tenant_id
    from .eventlog.manifest import manifest_prefix, tenant_stream
    from .eventlog.store.locations import root_of
    from .eventlog.store.open_store import open_store

    _check_exists(log)
    store = open_store(root_of(log))
    if tenant is not None and store.list_blocking(
        manifest_prefix(tenant_stream(check_tenant_id(tenant)))
    ):
        return
    # A platform's own streams tell that there is a log; one without them takes a longer look.
    prefixes = (manifest_prefix("loader"), manifest_prefix("timers/0"), "tenants/")
    if not any(store.list_blocking(prefix) for prefix in prefixes):
        raise _no_log(f"{store.root} holds no log")
    if tenant is not None:
        raise InvalidError(
            f"the log at {store.root} has no tenant {tenant!r}: `dynamic-workflows tenants` lists "
            "those that it has",
            code="tenant.not_found",
        )


def _no_log(problem: str) -> InvalidError:
    return InvalidError(
        f"{problem}: say where the event log lies with --log PATH or the environment's "
        f"{_LOG_VARIABLE}",
        code="log.not_found",
    )


@cli.command()
def verify(log: Log = DEFAULT_LOG) -> None:
    """Prove that the log is whole; the exit status is 1 when it is not, or when there is none."""
    from .eventlog.log.verify import verify as verify_log
    from .loaders.bundles.code_keys import check_stored

    _check_exists(log)
    report = verify_log(log, check_bundle=check_stored)
    if not report.streams and report.ok:
        raise _no_log(f"{report.root} holds no log, so nothing was verified")
    typer.echo("\n".join(report.lines))
    if not report.ok:
        raise typer.Exit(1)


@cli.command()
def tenants(log: Log = DEFAULT_LOG, skip_damaged: SkipDamaged = False) -> None:
    """The tenants of the log, with how many instances each has."""
    _table(
        log,
        "select tenant_id, count(*) as instances, "
        "count(*) filter (where status not in ('complete', 'errored', 'terminated')) as open, "
        "max(created_at) as newest from instances group by 1 order by 1",
        [],
        skip_damaged=skip_damaged,
    )


@cli.command()
def ls(
    tenant: TenantArg,
    log: Log = DEFAULT_LOG,
    status: Annotated[str | None, typer.Option(help="Only instances of this status.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only this workflow class.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 25,
) -> None:
    """A tenant's instances, newest first."""
    from .actors.instances.identifiers import check_statuses, check_workflow_name

    check_statuses(status)
    if workflow is not None:
        check_workflow_name(workflow)
    _table(
        log,
        "select instance_id, workflow, status, created_at, ended_at, steps from instances "
        "where tenant_id = ? and (? is null or status = ?) and (? is null or workflow = ?) "
        "order by created_at desc, instance_id limit ?",
        [tenant, status, status, workflow, workflow, limit],
        tenant=tenant,
    )


cli.command("list", hidden=True, help="As ls.")(ls)


def _table(log: str, query: str, params: list[Any], **options: Any) -> None:
    from .eventlog.query.render import render

    typer.echo(render(_query(log, query, params, **options), "table"), nl=False)


@cli.command()
def status(
    tenant: TenantArg, id: IdArg, log: Log = DEFAULT_LOG, workflow: Workflow = DEFAULT_WORKFLOW
) -> None:
    """An instance and its steps."""
    found = _query(
        log,
        "select * from instances where tenant_id = ? and workflow = ? and instance_id = ?",
        [tenant, workflow, id],
        tenant=tenant,
    ).to_pylist()
    if not found:
        raise _no_instance(tenant, id, workflow)
    steps = _query(
        log,
        "select kind, step, count, status, attempts, started_at, ended_at, output, error_name, "
        "error_message from steps where tenant_id = ? and workflow = ? and instance_id = ? "
        "order by started_at, step, count",
        [tenant, workflow, id],
        tenant=tenant,
    ).to_pylist()
    _print({**found[0], "steps": steps})


@cli.command()
def history(
    tenant: TenantArg,
    id: IdArg,
    log: Log = DEFAULT_LOG,
    workflow: Workflow = DEFAULT_WORKFLOW,
    as_json: AsJson = False,
) -> None:
    """The events of an instance, every run of it."""
    table = _query(
        log,
        "select seq, ts, run, type, step, count, attempt, payload from events "
        "where tenant_id = ? and workflow = ? and instance_id = ? order by seq",
        [tenant, workflow, id],
        tenant=tenant,
    )
    if not table.num_rows:
        raise _no_instance(tenant, id, workflow)
    if as_json:
        _print(table.to_pylist())
        return
    from .eventlog.query.render import render

    typer.echo(render(table, "table"), nl=False)


@cli.command()
def why(
    tenant: TenantArg,
    id: IdArg,
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the platform that is at work on the log.")
    ] = False,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Why an instance is where it is, as the log's files tell it."""
    if live:
        _show_why(_live_why(tenant, id, workflow, log, address, namespace))
        return
    from .actors.diagnosis.stored_explanation import explain_stored
    from .eventlog.clock import SystemClock
    from .eventlog.store.locations import root_of
    from .eventlog.store.open_store import open_store

    _check_log(log, tenant)

    async def look() -> Any:
        store = open_store(root_of(log))
        try:
            at_work = await _at_work(log)
            return await explain_stored(
                store, tenant, id, workflow, clock=SystemClock(), at_work=at_work
            )
        finally:
            await store.close()

    _show_why(asyncio.run(look()))


def _live_why(
    tenant: str, id: str, workflow: str, log: str, address: str | None, namespace: str
) -> Any:
    async def work(platform: Any) -> Any:
        return await platform.why(tenant, id, workflow)

    return _steer(log, address, namespace, work, may_start=False)


def _show_why(found: Any) -> None:
    typer.echo(f"{found.code}: {_plain(found.text)}")


def _no_instance(tenant: str, id: str, workflow: str) -> InstanceError:
    return InstanceError(
        f"tenant {tenant!r} has no instance {id!r} of {workflow}: `dynamic-workflows ls {tenant}` "
        "lists what it has; --workflow names another class",
        code="instance.not_found",
    )


# --- steering ------------------------------------------------------------------------------------


def _steer(
    log: str,
    address: str | None,
    namespace: str,
    work: Callable[[Any], Coroutine[Any, Any, Any]],
    *,
    may_start: bool = True,
) -> Any:
    """Do some work with the platform on the log; without one, with one that lasts as long."""

    async def run() -> Any:
        from .platform import connect

        found = None if address is not None else await _at_work(log)
        if found is None and address is None:
            if not may_start:
                raise Unavailable(
                    f"no platform is at work on the log at {log}: start one, or leave out --live"
                )
            note = f"note: no platform is at work on the log at {log}: one starts for this command"
            typer.echo(note, err=True)
        place, space = address, namespace
        if found is not None:
            place, space = None if found.is_embedded else found.address, found.namespace
        async with connect(log, address=place, namespace=space) as platform:
            return await work(platform)

    return asyncio.run(run())


async def _at_work(log: str) -> Any:
    """The claim of the platform that is at work on the log."""
    from .actors.claims import Claims
    from .eventlog.store.locations import root_of
    from .eventlog.store.open_store import open_store

    store = open_store(root_of(log))
    try:
        found = await Claims(store).at_work()
    finally:
        await store.close()
    return None if found is None else found.claim


def _value(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidError(f"{name} is not JSON: {error}") from None


@cli.command()
def create(
    tenant: TenantArg,
    id: Annotated[str | None, typer.Option("--id", help="The instance's id.")] = None,
    params: Annotated[str, typer.Option(help="The params, as JSON.")] = "{}",
    wait: Annotated[bool, typer.Option(help="Wait for the result and print it.")] = False,
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Create an instance of a tenant's (deployed) code."""
    given = _value(params, "--params")

    async def work(platform: Any) -> None:
        binding = platform.tenant(tenant).workflow(workflow)
        instance = await binding.create(id=id, params=given)
        typer.echo(instance.id)
        if wait:
            _print(await instance.result())

    _steer(log, address, namespace, work)


@cli.command()
def result(
    tenant: TenantArg,
    id: IdArg,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.")] = None,
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Wait for an instance and print its output."""

    async def work(platform: Any) -> None:
        instance = await platform.tenant(tenant).workflow(workflow).get(id)
        _print(await instance.result(timeout))

    _steer(log, address, namespace, work)


@cli.command()
def deploy(
    tenant: TenantArg,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    main_module: Annotated[str, typer.Option("--main", help="The main module.")] = "index.py",
    revision: Annotated[
        str | None,
        typer.Option(help="A commit, tag or branch: the folder as git knows it there."),
    ] = None,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Put the files of a folder in place as a tenant's code."""
    code = _code_in(folder, main_module, revision)

    async def work(platform: Any) -> None:
        typer.echo(await platform.tenant(tenant).deploy(code))

    _steer(log, address, namespace, work)


def _code_in(folder: Path, main_module: str, revision: str | None) -> Any:
    from .loaders.bundles.sources import read_folder, read_revision

    if revision is None:
        return read_folder(folder, main_module=main_module)
    return asyncio.run(read_revision(folder, revision, main_module=main_module))


@cli.command()
def reload(
    tenant: TenantArg,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Forget what was deployed; the platform's own callback says the code again."""
    _steer(log, address, namespace, lambda platform: platform.tenant(tenant).reload())


def _command(
    tenant: str,
    id: str,
    workflow: str,
    log: str,
    address: str | None,
    namespace: str,
    command: Callable[[Any], Coroutine[Any, Any, Any]],
) -> None:
    async def work(platform: Any) -> None:
        instance = await platform.tenant(tenant).workflow(workflow).get(id)
        await command(instance)

    _steer(log, address, namespace, work)


@cli.command()
def pause(
    tenant: TenantArg,
    id: IdArg,
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Pause an instance."""
    _command(tenant, id, workflow, log, address, namespace, lambda one: one.pause())


@cli.command()
def resume(
    tenant: TenantArg,
    id: IdArg,
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Let a paused or parked instance go on."""
    _command(tenant, id, workflow, log, address, namespace, lambda one: one.resume())


@cli.command()
def terminate(
    tenant: TenantArg,
    id: IdArg,
    rollback: Annotated[bool, typer.Option(help="Undo finished steps first.")] = False,
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """End an instance for good."""
    _command(
        tenant, id, workflow, log, address, namespace, lambda one: one.terminate(rollback=rollback)
    )


@cli.command()
def restart(
    tenant: TenantArg,
    id: IdArg,
    from_step: Annotated[str | None, typer.Option(help="Begin at this step.")] = None,
    from_count: Annotated[int, typer.Option(help="Its occurrence.")] = 1,
    from_type: Annotated[str, typer.Option(help="do, sleep or wait_for_event.")] = "do",
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Run an instance again, from the top or from a step."""
    target = None
    if from_step is not None:
        target = {"name": from_step, "count": from_count, "type": from_type}
    _command(tenant, id, workflow, log, address, namespace, lambda one: one.restart(from_=target))


@cli.command("send-event")
def send_event(
    tenant: TenantArg,
    id: IdArg,
    type: Annotated[str, typer.Option("--type", help="The event's type.")],
    payload: Annotated[str, typer.Option(help="The payload, as JSON.")] = "null",
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Send an event to an instance."""
    value = _value(payload, "--payload")
    _command(tenant, id, workflow, log, address, namespace, lambda one: one.send_event(type, value))


@cli.command()
def delete(
    tenant: TenantArg,
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    workflow: Workflow = DEFAULT_WORKFLOW,
    log: Log = DEFAULT_LOG,
    address: Address = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Delete instances and everything of them."""

    async def work(platform: Any) -> Any:
        return await platform.tenant(tenant).workflow(workflow).delete_batch(ids)

    outcome = _steer(log, address, namespace, work)
    for name in outcome.deleted:
        typer.echo(f"deleted {name}")
    for error in outcome.errors:
        typer.echo(f"{error.id}: {error.code}: {_plain(error.message)}", err=True)
    if outcome.errors:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
