"""Isolates start, answer, keep to their limits, and end in a way that one can understand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import other_host
import pytest
from isolates import CLOSED, DEFAULT, ECHO, ECHOED, LOG, RESULT, Talk, isolates, start
from paths import IMPORTS

from dynamic_workflows.eventlog.errors import PlatformClosed, SandboxUnavailable, Unavailable
from dynamic_workflows.loaders.guest.isolate_main import CALL_KIND, REPLY_KIND
from dynamic_workflows.loaders.isolates.interface import Exit, Isolation, Limits
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates
from dynamic_workflows.loaders.protocol.messages import (
    CallRequest,
    Go,
    Load,
    Log,
    Module,
    Reply,
    Run,
    pack,
    unpack_from_guest,
)
from dynamic_workflows.loaders.sandbox.sandbox import SandboxPlan

LOADED, STEP, END = 16, 17, 22
needs_walls = pytest.mark.skipif(other_host.IS_HERE, reason="there are no walls on other hosts")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return False
    except OSError:
        return other_host.IS_HERE  # without /proc, there is no more to know
    return stat.rpartition(")")[2].split()[0] != "Z"


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(60):
        for pid in pids:
            while is_alive(pid):  # noqa: ASYNC110 - nobody tells of other processes' ends
                await asyncio.sleep(0.005)


async def ends(source: str, limits: Limits | None = None, life: int = 7) -> Exit:
    """How an isolate ends that runs this."""
    async with isolates() as made:
        talk = await start(made, limits)
        talk.tell(source, life)
        return await talk.end()


async def test_an_isolate_runs_what_it_is_sent_and_answers() -> None:
    async with isolates() as made:
        talk = await start(made)
        assert await talk.run("result = 6 * 7") == ("ok", "42")
        assert talk.isolate.level == made.level
        assert "seccomp" in made.level or DEFAULT.level in made.level
        await talk.close()
        assert not is_alive(talk.isolate.pid or 0)


async def test_every_isolate_is_another_process_and_blank_ones_are_used_once() -> None:
    async with isolates(replace(DEFAULT, warm=2)) as made:
        pids = set()
        for _ in range(6):
            talk = await start(made)
            assert (await talk.run("import builtins; result = hasattr(builtins, 'used')"))[
                1
            ] == "False"
            await talk.run("import builtins; builtins.used = True")
            pids.add(talk.isolate.pid)
            await talk.close()
        assert len(pids) == 6


async def test_blank_isolates_wait_ready_and_are_handed_out() -> None:
    async with isolates(replace(DEFAULT, warm=2)) as made:
        async with asyncio.timeout(60):
            while made.counts["started_warm"] == 0:
                talk = await start(made)
                await talk.run("pass")
                await talk.close()
        assert made.counts["started"] >= made.counts["started_warm"]


async def test_nothing_heavy_is_imported_in_an_isolate() -> None:
    source = """
import importlib, sys
importlib.import_module("dynamic_workflows")
try:
    importlib.import_module("dynamic_workflows.loaders.guest.guest")
except ModuleNotFoundError as error:
    assert error.name == "dynamic_workflows.loaders.guest.guest", error
result = sorted({"ray", "pyarrow", "duckdb", "obstore", "ctypes.util"} & set(sys.modules))
"""
    async with isolates() as made:
        talk = await start(made)
        assert await talk.run(source) == ("ok", "[]")


async def test_large_messages_go_both_ways() -> None:
    body = os.urandom(1 << 20) * 24
    async with isolates() as made:
        talk = await start(made)
        talk.isolate.send([(ECHO, 1, b"first"), (ECHO, 2, body), (ECHO, 3, b"last")])
        assert await talk.hear(ECHOED) == b"first"
        assert await talk.hear(ECHOED) == body
        assert await talk.hear(ECHOED) == b"last"


async def test_many_messages_arrive_in_order() -> None:
    async with isolates() as made:
        talk = await start(made)
        talk.isolate.send([(ECHO, number, b"x" * 100) for number in range(20_000)])
        async with asyncio.timeout(60):
            while len(talk.frames) < 20_000:
                talk.news.clear()
                await talk.news.wait()
        assert [life for _, life, _ in talk.frames] == list(range(20_000))


async def test_a_spin_is_ended_with_the_limit_as_its_reason_and_the_life_that_spun() -> None:
    exit = await ends("while True: pass", Limits(turn_cpu_ms=100))
    assert exit == Exit("cpu limit of 0.1 s exceeded", is_tenants_own=True, life=7, kind="cpu")


async def test_a_turn_that_sleeps_too_long_is_ended() -> None:
    exit = await ends("import time; time.sleep(60)", Limits(turn_wall_ms=200))
    assert exit == Exit(
        "limit of 0.2 s for one turn exceeded", is_tenants_own=True, life=7, kind="wall"
    )


async def test_a_forged_heartbeat_does_not_hide_a_spin() -> None:
    forge = """
import gc, mmap
from dynamic_workflows.loaders.protocol.heartbeat import HeartbeatWriter
page = next(o for o in gc.get_objects() if isinstance(o, HeartbeatWriter))
while True:
    page.begin_turn()
    page.rest()
"""
    exit = await ends(forge, Limits(silent_cpu_ms=200))
    assert (exit.kind, exit.is_tenants_own) == ("silent", True)
    assert exit.reason == "cpu limit of 0.2 s without a message exceeded"


async def test_many_short_turns_are_no_spin() -> None:
    source = """
import asyncio, time
async def main():
    begin = time.thread_time()
    while time.thread_time() - begin < 0.5:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0)
"""
    async with isolates() as made:
        talk = await start(made, Limits(turn_cpu_ms=200))
        assert (await talk.run(source))[0] == "ok"


@needs_walls
async def test_memory_beyond_the_limit_is_an_error_inside() -> None:
    async with isolates() as made:
        talk = await start(made, Limits(memory_mb=64))
        assert (await talk.run("x = bytearray(32 << 20); result = len(x)"))[0] == "ok"
        assert (await talk.run("y = bytearray(128 << 20)"))[0] == "MemoryError"
        assert await talk.run("result = 'alive'") == ("ok", "'alive'")


async def test_resident_memory_beyond_the_limit_is_the_end() -> None:
    grow = """
async def main():
    import asyncio
    hoard = []
    while True:
        hoard.append(b"x" * (1 << 20))
        await asyncio.sleep(0.001)
"""
    sandbox = SandboxPlan(level=DEFAULT.level, rlimits=False)
    async with isolates(sandbox=sandbox) as made:
        talk = await start(made, Limits(memory_mb=64))
        talk.tell(grow)
        exit = await talk.end()
    assert exit == Exit(
        "memory limit of 64 MB exceeded", is_tenants_own=True, life=1, kind="memory"
    )


async def test_memory_taken_in_one_go_is_noticed_though_nothing_moves_after_it() -> None:
    sandbox = SandboxPlan(level=DEFAULT.level, rlimits=False)
    async with isolates(sandbox=sandbox) as made:
        talk = await start(made, Limits(memory_mb=64, turn_wall_ms=600_000))
        talk.tell("x = b'x' * (128 << 20); import time; time.sleep(600)")
        exit = await talk.end()
    assert exit.kind == "memory"


@pytest.mark.parametrize(
    ("source", "kind", "reason"),
    [
        ("import os; os._exit(3)", "exit", "exited with status 3"),
        ("raise SystemExit(4)", "exit", "exited with status 4"),
        ("import os; os._exit(0)", "exit", "exited with status 0"),
        ("import ctypes; ctypes.string_at(8)", "signal", "killed by signal 11 (SIGSEGV)"),
        pytest.param(
            "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
            "signal",
            "killed for a forbidden system call",
            marks=needs_walls,
        ),
        pytest.param(
            "import os; os.close(3); loop.call_later(60, print)",
            "protocol",
            None,
            # Other selectors than epoll notice it inside: then it leaves by itself.
            marks=pytest.mark.skipif(other_host.IS_HERE, reason="there is no epoll"),
        ),
        ("import os; os.write(3, b'GET / HTTP/1.1')", "protocol", None),
    ],
)
async def test_what_the_tenant_brings_upon_itself_is_its_own(
    source: str, kind: str, reason: str | None
) -> None:
    exit = await ends(source)
    assert exit.is_tenants_own
    assert (exit.kind, exit.life) == (kind, 7)
    assert reason is None or exit.reason == reason


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_kill_from_outside_is_the_platforms(number: int) -> None:
    async with isolates() as made:
        talk = await start(made)
        await talk.run("pass")
        os.kill(talk.isolate.pid or 0, number)
        exit = await talk.end()
    assert not exit.is_tenants_own
    assert exit.kind == "platform"
    assert str(int(number)) in exit.reason


async def test_our_own_kill_ends_it_with_our_word_and_no_message_after() -> None:
    async with isolates() as made:
        talk = await start(made)
        talk.tell("import time; time.sleep(0.1); send([(20, 1, b'late')])", life=9)
        talk.isolate.kill(CLOSED)
        talk.isolate.kill(Exit("second", is_tenants_own=True))
        assert (await talk.end()).reason == "closed"
        assert talk.frames == []


async def test_what_it_said_before_it_ended_is_heard() -> None:
    source = """
import os
send([(20, 1, b"done")])
loop.call_later(0.01, os._exit, 0)
"""
    async with isolates() as made:
        talk = await start(made)
        talk.tell(source)
        await talk.end()
        assert (RESULT, 1, b"done") in talk.frames


async def test_a_lost_zygote_loses_its_isolates_to_the_platform_and_is_replaced() -> None:
    async with isolates() as made:
        first, second = await start(made), await start(made)
        second.tell("while True: pass", life=2)
        zygote = made._spawner
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGKILL)
        for talk in (first, second):
            exit = await talk.end()
            assert (exit.reason, exit.is_tenants_own) == ("lost with its zygote", False)
        await until_gone(first.isolate.pid or 0, second.isolate.pid or 0)
        third = await start(made)
        assert await third.run("result = 1") == ("ok", "1")
        assert made.counts["zygotes"] == 2


async def test_a_zygote_that_is_lost_during_a_start_is_replaced_and_the_start_goes_on() -> None:
    async with isolates() as made:
        await made.ready()
        zygote = made._spawner
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGSTOP)
        starting = asyncio.create_task(start(made))
        while not zygote._requests:  # noqa: ASYNC110 - nobody tells that it was asked
            await asyncio.sleep(0)
        os.kill(zygote.pid, signal.SIGKILL)
        talk = await starting
        assert await talk.run("result = 1") == ("ok", "1")
        assert (made.counts["zygotes"], made.alive) == (2, 1)


async def test_a_zygote_whose_end_nobody_has_noticed_yet_is_replaced_all_the_same() -> None:
    async with isolates() as made:
        await made.ready()
        zygote = made._spawner
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGKILL)
        zygote._process.wait()
        talk = await start(made)
        assert await talk.run("result = 1") == ("ok", "1")
        assert (made.counts["zygotes"], made.alive) == (2, 1)


async def test_everything_dies_with_its_supervisor() -> None:
    program = """
import asyncio
from isolates import isolates, start
async def main():
    async with isolates() as made:
        talks = [await start(made) for _ in range(3)]
        talks[0].tell("while True: pass")
        print(made._spawner.pid, *(talk.isolate.pid for talk in talks), flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(IMPORTS)},
    )
    try:
        assert supervisor.stdout is not None
        line = await supervisor.stdout.readline()
        pids = [int(word) for word in line.split()]
        assert len(pids) == 4
        assert all(is_alive(pid) for pid in pids)
    finally:
        supervisor.kill()
        await supervisor.wait()
    await until_gone(*pids)


async def test_closing_ends_every_process_and_starting_is_refused() -> None:
    async with isolates(replace(DEFAULT, warm=2)) as made:
        talk = await start(made)
        zygote = made._spawner
        assert zygote is not None
        await made.close()
        assert (await talk.end()).kind == "closed"
        await until_gone(talk.isolate.pid or 0, zygote.pid)
        with pytest.raises(PlatformClosed):
            await start(made)


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8])
async def test_a_start_that_is_given_up_leaves_no_process(turns: int) -> None:
    async with isolates() as made:
        await (await start(made)).close()
        files = open_files()
        task = asyncio.ensure_future(start(made))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).close()
        talk = await start(made)
        abandoned = [isolate.ended for isolate in made._isolates if isolate is not talk.isolate]
        async with asyncio.timeout(60):
            await asyncio.gather(*abandoned)
        assert await talk.run("result = 1") == ("ok", "1")
        await talk.close()
        assert open_files() == files


def open_files() -> int:
    """How many files this process holds."""
    found = 0
    for fd in range(1024):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found += 1
    return found


async def test_where_no_file_can_be_opened_the_platform_is_unavailable() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with isolates() as made:
        await (await start(made)).close()
        files = open_files()
        refused = 0
        for spare in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files + spare - 1, hard))
            try:
                await (await start(made)).close()
            except Unavailable:
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert open_files() == files
        assert 4 <= refused <= 8
        assert await (await start(made)).run("result = 1") == ("ok", "1")


@needs_walls
async def test_root_without_another_user_to_become_is_refused() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    async with isolates(Isolation(warm=0, uid=0, uids_first=0)) as made:
        with pytest.raises(SandboxUnavailable, match="as root"):
            await start(made)


async def test_no_walls_are_loud(caplog: pytest.LogCaptureFixture) -> None:
    async with isolates(Isolation(level="unsafe-none", warm=0)) as made:
        with caplog.at_level(logging.WARNING):
            talk = await start(made)
        assert talk.isolate.level == "unsafe-none"
        assert "WITHOUT walls" in caplog.text
        assert (await talk.run("import socket; socket.socket()"))[0] == "ok"


async def test_raw_output_becomes_log_messages() -> None:
    async with isolates() as made:
        talk = await start(made)
        await talk.run("import os; os.write(1, b'raw \\xff words\\n')", life=3)
        log = msgspec.msgpack.decode(await talk.hear(LOG), type=Log)
        assert log.text == "raw \ufffd words"


async def test_a_flood_of_raw_output_is_counted_not_kept() -> None:
    async with isolates() as made:
        talk = await start(made)
        await talk.run("import os\nfor _ in range(400): os.write(2, b'x' * 999 + b'\\n')")
        await talk.close()
        logs = [msgspec.msgpack.decode(f[2], type=Log) for f in talk.frames if f[0] == LOG]
        assert sum(len(log.text) for log in logs) < 300_000


async def test_calls_beyond_the_limit_wait_for_answers() -> None:
    source = """
from dynamic_workflows.loaders.protocol.messages import CallRequest, pack
for number in range(10):
    send([pack(CallRequest(number, "x", "y", b"", b""))])
"""
    async with isolates() as made:
        talk = await start(made, Limits(calls_in_flight_max=4))
        await talk.run(source)
        assert calls(talk) == [0, 1, 2, 3]
        talk.isolate.send([pack(Reply(1)), pack(Reply(3))])
        await talk.run("pass")
        assert calls(talk) == [0, 1, 2, 3, 4, 5]
        assert REPLY_KIND != CALL_KIND


def calls(talk: Talk) -> list[int]:
    return [
        msgspec.msgpack.decode(body, type=CallRequest).call
        for kind, _, body in talk.frames
        if kind == CALL_KIND
    ]


async def test_calls_past_the_gate_are_a_broken_protocol() -> None:
    source = """
from dynamic_workflows.loaders.protocol.messages import CallRequest, pack
send.__self__._send([pack(CallRequest(number, "x", "y", b"", b"")) for number in range(10)])
"""
    async with isolates() as made:
        talk = await start(made, Limits(calls_in_flight_max=4))
        talk.tell(source)
        exit = await talk.end()
    assert exit.reason == "broken protocol: more than 4 calls in flight"
    assert exit.is_tenants_own


@needs_walls
async def test_open_files_have_a_limit() -> None:
    source = "import os; held = [os.dup(0) for _ in range(100)]"
    async with isolates() as made:
        talk = await start(made, Limits(files_max=32))
        state, text = await talk.run(source)
        assert (state, "Too many open files" in text) == ("OSError", True)


async def test_granted_packages_can_be_imported_and_others_cannot() -> None:
    source = """
import annotated_types, importlib
import pydantic, pydantic.color
try:
    importlib.import_module("hypothesis")
except ModuleNotFoundError:
    result = pydantic.BaseModel.__name__
"""
    async with isolates(replace(DEFAULT, packages=("pydantic", "no_such_package"))) as made:
        talk = await start(made)
        state, text = await talk.run(source)
        assert (state, text) == ("ok", "'BaseModel'")


@needs_walls
async def test_threads_are_the_deployments_choice() -> None:
    source = "import threading; t = threading.Thread(target=int); t.start(); t.join()"
    async with isolates() as made:
        talk = await start(made)
        assert (await talk.run(source))[0] == "RuntimeError"
    async with isolates(Isolation(warm=0, threads=True)) as made:
        talk = await start(made)
        assert (await talk.run(source))[0] == "ok"
        assert (await talk.run("import os; os.fork()"))[0] == "PermissionError"


@needs_walls
async def test_blank_isolates_follow_the_limits_that_are_asked_for() -> None:
    small = Limits(memory_mb=64)
    async with isolates(replace(DEFAULT, warm=1)) as made:
        for _ in range(2):
            await (await start(made, small)).close()
        async with asyncio.timeout(60):
            while made.counts["started_warm"] == 0:
                talk = await start(made, small)
                assert (await talk.run("x = bytearray(100 << 20)"))[0] == "MemoryError"
                await talk.close()


async def test_a_failing_supervisor_gives_the_isolate_up_as_its_own_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(frames: object) -> None:
        raise ZeroDivisionError

    async with isolates() as made:
        talk = Talk()
        talk.isolate = await made.start(limits=Limits(), on_frames=fail, on_exit=talk.on_exit)
        talk.tell("result = 1")
        exit = await talk.end()
    assert exit.reason == "its supervisor failed on a message"
    assert not exit.is_tenants_own
    assert "ZeroDivisionError" in caplog.text


CODE = b"""
import sys
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        print("begun")
        one = await step.do("one", lambda: 1)
        heavy = {"ray", "pyarrow", "duckdb", "obstore"} & set(sys.modules)
        return {"one": one, "heavy": sorted(heavy)}
"""


@pytest.mark.parametrize("warm", [0, 1])
async def test_the_real_guest_runs_a_workflow_behind_the_walls(warm: int) -> None:
    made = ProcessIsolates(replace(DEFAULT, warm=warm))
    try:
        if warm:
            async with asyncio.timeout(60):
                while not made._blanks:  # noqa: ASYNC110 - the pool fills in the background
                    await asyncio.sleep(0.005)
        talk = await start(made)
        assert made.counts["started_warm"] == warm
        load = Load("index.py", [Module("index.py", "py", CODE)], [])
        talk.isolate.send([pack(load), pack(Run("TenantWorkflow", "i", b"null", 0, []), life=5)])
        loaded: Any = unpack_from_guest(LOADED, await talk.hear(LOADED))
        assert [export.name for export in loaded.exports] == ["TenantWorkflow"]
        step: Any = unpack_from_guest(STEP, await talk.hear(STEP))
        talk.isolate.send([pack(Go(step.token, 1), life=5)])
        end: Any = unpack_from_guest(END, await talk.hear(END))
        assert end.value == b'{"one":1,"heavy":[]}'
        assert talk.isolate.life == 5
    finally:
        await made.close()
