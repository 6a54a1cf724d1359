"""Calls that may never return: they keep no event loop and no program from ending."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest

from dynamic_workflows.actors.cluster.daemon_threads import in_daemon_thread

NEVER_RETURNS = """
import asyncio, threading
from dynamic_workflows.actors.cluster.daemon_threads import in_daemon_thread

async def main():
    try:
        await asyncio.wait_for(in_daemon_thread(threading.Event().wait), 0.05)
    except TimeoutError:
        print("went on")

asyncio.run(main())
"""


def test_a_program_ends_though_a_call_never_returns() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NEVER_RETURNS], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "went on\n", "")


async def test_results_errors_and_context_variables_come_through() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("held")
    assert await in_daemon_thread(variable.get) == "held"
    with pytest.raises(ValueError, match="invalid literal"):
        await in_daemon_thread(int, "x")


async def test_an_answer_that_comes_after_its_caller_has_gone_hurts_nobody() -> None:
    release, errors = threading.Event(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    waiting = asyncio.ensure_future(in_daemon_thread(release.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    release.set()
    await in_daemon_thread(int)
    assert waiting.cancelled()
    assert errors == []
