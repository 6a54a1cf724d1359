"""What a service's exception says reaches tenants where its class says so; the log has it all."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.hosting.service_errors import LOGGED_PER_S, ServiceErrors

SECRET = "postgres://admin:hunter2@10.0.0.7/ledger"
CODE = """
import base64
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint, fetch

def shown(error):
    seen = [type(error).__name__, str(error), repr(error.args), repr(vars(error))]
    return seen + (shown(error.__cause__) if error.__cause__ else [])

class Default(WorkerEntrypoint):
    async def go(self, method, *args):
        try:
            return await getattr(self.env.LEDGER, method)(*args)
        except Exception as error:
            return shown(error)

    async def ask(self):
        try:
            return await fetch("https://example.com/")
        except Exception as error:
            return shown(error)
"""


class Unpaid(Exception):
    """Says that its message is for tenants."""

    public_message = True


class Closed(Exception):
    """Is let through by the service."""


class Private(Exception):
    """Says nothing."""


class Final(dw.NonRetryableError):
    """Inherits what it says."""


def caused(error: Exception) -> Exception:
    error.__cause__ = ConnectionError(SECRET)
    error.add_note(SECRET)
    error.dsn = SECRET  # type: ignore[attr-defined]
    return error


HIDDEN: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError(SECRET),
    "KeyError": lambda: KeyError(SECRET),
    "OSError": lambda: OSError(2, SECRET, SECRET, None, SECRET),
    "FileNotFoundError": lambda: FileNotFoundError(2, "none", SECRET),
    "ImportError": lambda: ImportError("none", name=SECRET, path=SECRET),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
    "JSONDecodeError": lambda: json.JSONDecodeError("none", SECRET, 0),
    "SyntaxError": lambda: SyntaxError("none", (SECRET, 1, 1, SECRET)),
    "ExceptionGroup": lambda: ExceptionGroup(SECRET, [dw.NonRetryableError(SECRET)]),
    "StopIteration": lambda: StopIteration(SECRET),
    "Private": lambda: Private(SECRET),
    "Closed2": lambda: type("Closed2", (Exception,), {"__str__": lambda self: SECRET})(),
    "StepError": lambda: dw.StepError(SECRET, SECRET),
    "Unavailable": lambda: dw.Unavailable(SECRET, path=SECRET),
    "QueryError": lambda: dw.QueryError(SECRET),
    "CodeError": lambda: dw.CodeError(SECRET, code="code.load_failed"),
    "CancelledError": lambda: asyncio.CancelledError(SECRET),
    "SystemExit": lambda: SystemExit(SECRET),
    "caused": lambda: caused(RuntimeError("none")),
}
SHOWN: dict[str, Callable[[], Exception]] = {
    "Unpaid": lambda: Unpaid("told"),
    "Closed": lambda: Closed("told"),
    "NonRetryableError": lambda: dw.NonRetryableError("told"),
    "Final": lambda: Final("told"),
    "InvalidError": lambda: dw.InvalidError("told", code="ledger.closed"),
    "EgressDeniedError": lambda: dw.EgressDeniedError("told"),
    "LookupError": lambda: caused(LookupError("told")),
    "caused": lambda: caused(Unpaid("told")),
}


class Ledger(dw.Service):
    """Raises what it is asked for."""

    public_errors: tuple[type[BaseException], ...] = (Closed, LookupError)

    async def hidden(self, name: str) -> None:
        raise HIDDEN[name]()

    async def shown(self, name: str) -> None:
        raise SHOWN[name]()

    async def book(self, amount: int) -> int:
        return amount

    async def fetch(self, request: dw.Request) -> None:
        raise ConnectionError(SECRET)


class Hiding(Ledger):
    """Lets nothing through."""

    public_errors = ()


def platform_of(ledger: dw.Service) -> dw.Platform:
    code = dw.WorkerCode(
        "index.py", {"index.py": CODE}, {"LEDGER": ledger}, global_outbound=Hiding()
    )
    return testing.connect(load=lambda tenant_id: code)


def reference(text: str) -> str:
    found = re.search(r"reference ([0-9a-f]{12})", text)
    assert found is not None, text
    return found[1]


@pytest.mark.parametrize("name", HIDDEN)
async def test_of_an_error_that_says_nothing_tenants_learn_class_and_reference(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with platform_of(Hiding()) as platform:
        told = await platform.tenant("acme").entrypoint().go("hidden", name)
    assert "hunter2" not in str(told)
    assert type(HIDDEN[name]()).__name__ in told[1] or name == "StopIteration"
    (line,) = [one for one in caplog.records if reference(told[1]) in one.getMessage()]
    assert SECRET in line.getMessage() or name in ("ImportError", "JSONDecodeError")
    assert "in hidden" in line.getMessage(), "the whole traceback"
    assert "'acme'" in line.getMessage()


@pytest.mark.parametrize("name", SHOWN)
async def test_an_error_whose_class_says_so_is_told_and_nothing_beside_it(name: str) -> None:
    async with platform_of(Ledger()) as platform:
        told = await platform.tenant("acme").entrypoint().go("shown", name)
    assert "told" in told[1]
    assert "hunter2" not in str(told)


async def test_wrong_arguments_are_told_as_the_callers_mistake() -> None:
    async with platform_of(Hiding()) as platform:
        told = await platform.tenant("acme").entrypoint().go("book")
    assert told[0] == "TypeError"
    assert "book(): missing a required argument: 'amount'" in told[1]


async def test_a_gateways_errors_are_a_services(caplog: pytest.LogCaptureFixture) -> None:
    async with platform_of(Ledger()) as platform:
        told = await platform.tenant("acme").entrypoint().ask()
    assert told[0] == "ConnectionError"
    assert "hunter2" not in str(told)
    assert reference(told[1]) in caplog.text


def test_who_fails_without_end_fills_no_log_and_forges_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = ServiceErrors("acme")
    caplog.set_level(logging.ERROR)
    told = [errors.told(ValueError("one\nERROR forged \x1b[2J"), "A.b") for _ in range(1_000)]
    assert LOGGED_PER_S <= len(caplog.records) < 500
    assert "too many" in told[-1].message
    assert not any("\nERROR" in one.getMessage() for one in caplog.records)
    assert "\x1b" not in caplog.text


async def test_code_that_has_no_more_retries_by_a_services_word_fails_at_once() -> None:
    code = (
        "from dynamic_workflows import WorkflowEntrypoint\n"
        "class TenantWorkflow(WorkflowEntrypoint):\n"
        "    async def run(self, event, step):\n"
        "        await step.do('pay', lambda: self.env.LEDGER.shown('Final'))\n"
    )

    def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": code}, {"LEDGER": Ledger()})

    async with testing.connect(load=load, auto_advance=True) as platform:
        instance = await platform.tenant("acme").workflows.create()
        with pytest.raises(dw.WorkflowFailedError, match="told"):
            await instance.result()
        rows: list[Any] = [row.type for row in await instance.history()]
    assert rows.count("attempt_started") == 1
