"""Log files: what commands read of a log that others may be at work on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from ..eventlog.errors import InvalidError
from .app import LOG_VARIABLE
from .output import printable


def query_log(
    log: str,
    query: str,
    params: Any = None,
    *,
    tenant: str | None = None,
    skip_damaged: bool = False,
    is_trusted: bool = True,
    **limits: Any,
) -> Any:
    """The answer of one SELECT over a log's files, as an Arrow table; says what is left out.

    Raises `log.not_found`, `tenant.not_found`, QueryError and Corrupt.
    """
    from ..eventlog.query.reader import Reader

    check_log(log, tenant)
    reader = Reader(log, tenant=tenant, is_trusted=is_trusted, **limits)
    try:
        table = reader.query(query, params, skip_damaged=skip_damaged)
    finally:
        reader.close()
    left_out = json.loads((table.schema.metadata or {}).get(b"left_out", b"{}"))
    for name, reason in left_out.items():
        typer.echo(printable(f"warning: tenant {name!r} is left out: {reason}"), err=True)
    return table


def check_exists(log: str) -> None:
    """Raises `log.not_found` for a place that is not there."""
    path = log.removeprefix("file://")
    if "://" not in path and not Path(path).is_dir():
        problem = "is no directory" if Path(path).exists() else "does not exist"
        raise no_log(f"{path} {problem}")


def check_log(log: str, tenant: str | None = None) -> None:
    """Raises `log.not_found` and `tenant.not_found`, where an empty answer would say nothing."""
    from ..actors.instances.identifiers import check_tenant_id
    from ..eventlog.manifest import manifest_prefix, tenant_stream
    from ..eventlog.store.locations import root_of
    from ..eventlog.store.open_store import open_store

    check_exists(log)
    store = open_store(root_of(log))
    if tenant is not None and store.list_blocking(
        manifest_prefix(tenant_stream(check_tenant_id(tenant)))
    ):
        return
    # A platform's own streams tell that there is a log; one without them takes a longer look.
    prefixes = (manifest_prefix("loader"), manifest_prefix("timers/0"), "tenants/")
    if not any(store.list_blocking(prefix) for prefix in prefixes):
        raise no_log(f"{store.root} holds no log")
    if tenant is not None:
        raise InvalidError(
            f"the log at {store.root} has no tenant {tenant!r}: `dynamic-workflows tenants` lists "
            "those that it has",
            code="tenant.not_found",
        )


def no_log(problem: str) -> InvalidError:
    """The error `log.not_found`, which says how to name another place."""
    return InvalidError(
        f"{problem}: say where the event log lies with --log PATH or the environment's "
        f"{LOG_VARIABLE}",
        code="log.not_found",
    )


async def claim_at_work(log: str) -> Any:
    """The claim of the platform that is at work on the log; None: there is none."""
    from ..actors.claims import Claims
    from ..eventlog.store.locations import root_of
    from ..eventlog.store.open_store import open_store

    store = open_store(root_of(log))
    try:
        found = await Claims(store).at_work()
    finally:
        await store.close()
    return None if found is None else found.claim
