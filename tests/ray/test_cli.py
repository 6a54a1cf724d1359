"""The command line looks into a log with nothing running, and steers tenants through a platform."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit_tenants import load
from typer.testing import CliRunner, Result

from dynamic_workflows import cli
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

HOSTILE = "\x1b]0;owned\x07\x1b[31m"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log on disk with two tenants in it, and nobody who owns it."""
    root = tmp_path_factory.mktemp("log")

    async def fill() -> None:
        store = open_store(root)
        platform = LocalPlatform(load=load, store=store)
        twice = WorkflowBinding(platform.calls("twice"))
        done = await twice.create(id="t-1")
        await done.send_event("go", {"x": HOSTILE})
        await done.result()
        await twice.create(id="t-2")
        await WorkflowBinding(platform.calls("order")).create(id="o-1")
        await platform.clock.advance("10 seconds")
        await platform.close()
        await store.close()

    asyncio.run(fill())
    return str(root)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, list(arguments), catch_exceptions=True)


def test_sql_answers_as_table_csv_and_json(log: str) -> None:
    query = "select tenant_id, count(*) as n from instances group by 1 order by 1"
    table = run("sql", query, "--log", log)
    assert table.exit_code == 0
    assert [line.split() for line in table.stdout.splitlines()[2:4]] == [
        ["order", "1"],
        ["twice", "2"],
    ]
    answer = run("--log", log, "sql", query, "--format", "json")
    assert json.loads(answer.stdout) == [
        {"tenant_id": "order", "n": 1},
        {"tenant_id": "twice", "n": 2},
    ]
    assert (
        run("sql", query, "--log", log, "--format", "csv").stdout.splitlines()[0] == "tenant_id,n"
    )


def test_csv_for_another_program_keeps_what_looks_like_colour(log: str) -> None:
    sql = "select chr(27) || '[31mred' as cell"
    assert run("sql", sql, "--log", log, "--format", "csv").stdout == "cell\n\x1b[31mred\n"


def test_sql_writes_parquet_to_a_file(log: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "events.parquet"
    done = run(
        "sql", "select * from events", "--log", log, "--format", "parquet", "--output", str(out)
    )
    assert done.exit_code == 0
    assert pq.read_table(out).num_rows > 10


def test_what_cannot_be_read_or_written_is_said_without_a_traceback(
    log: str, tmp_path: Path
) -> None:
    result = run("sql", "select 1", "--log", log, "--output", str(tmp_path / "no" / "where"))
    assert isinstance(result.exception, InvalidError)
    assert "cannot be written: No such file" in result.exception.message
    (tmp_path / "file").touch()
    result = run("verify", "--log", str(tmp_path / "file"))
    assert isinstance(result.exception, InvalidError)
    assert "is no directory" in result.exception.message


def test_the_log_is_found_by_the_environment(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMIC_WORKFLOWS_LOG", log)
    assert "twice" in run("tenants").stdout
    assert run("--log", "/nowhere", "tenants").exit_code != 0
    assert os.environ["DYNAMIC_WORKFLOWS_LOG"] == log


def test_one_tenants_sql_sees_that_tenant_alone(log: str) -> None:
    query = "select distinct tenant_id from events"
    answer = run("sql", query, "--log", log, "--tenant", "order", "--format", "json")
    assert json.loads(answer.stdout) == [{"tenant_id": "order"}]


def test_instances_are_listed_and_shown_with_their_steps(log: str) -> None:
    listed = run("ls", "twice", "--log", log, "--status", "complete").stdout
    assert "t-1" in listed
    assert "t-2" not in listed
    shown = json.loads(run("status", "twice", "t-1", "--log", log).stdout)
    assert shown["status"] == "complete"
    steps = sorted((step["step"], step["count"]) for step in shown["steps"])
    assert steps == [("go", 1), ("secret", 1), ("work", 1), ("work", 2)]
    events = json.loads(run("history", "twice", "t-1", "--log", log, "--json").stdout)
    assert events[0]["type"] == "workflow_queued"
    assert events[-1]["type"] == "workflow_completed"


def test_why_reads_the_files_and_changes_none(log: str) -> None:
    def files() -> list[tuple[str, int, int]]:
        found = sorted(path for path in Path(log).rglob("*"))
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]

    before = files()
    waits = run("why", "twice", "t-2", "--log", log)
    assert waits.stdout.startswith("waiting: it waits in 'go' for an event")
    assert "no platform is at work on this log" in waits.stdout
    assert run("why", "twice", "t-1", "--log", log).stdout.startswith("complete:")
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "code", "next_step"),
    [
        (["ls", "nobody"], "tenant.not_found", "dynamic-workflows tenants"),
        (["list", "nobody"], "tenant.not_found", "dynamic-workflows tenants"),
        (["status", "nobody", "x"], "tenant.not_found", "dynamic-workflows tenants"),
        (["history", "nobody", "x"], "tenant.not_found", "dynamic-workflows tenants"),
        (["why", "nobody", "x"], "tenant.not_found", "dynamic-workflows tenants"),
        (["sql", "from events", "--tenant", "nobody"], "tenant.not_found", "tenants"),
        (["history", "twice", "nobody"], "instance.not_found", "dynamic-workflows ls twice"),
        (["why", "twice", "nobody"], "instance.not_found", "never created, or it was deleted"),
        (["status", "twice", "t-1", "--workflow", "Other"], "instance.not_found", "--workflow"),
        (["ls", "twice", "--status", "sleeping"], "status.invalid", "waiting"),
        (["why", "twice", "t-1", "--live"], "platform.unavailable", "no platform is at work"),
        (["ls", "twice", "--log", "/nowhere"], "log.not_found", "--log PATH"),
        (["why", "twice", "t-1", "--log", "/nowhere"], "log.not_found", "--log PATH"),
        (["tenants", "--log", "/proc/self/task"], "log.not_found", "--log PATH"),
        (["sql", "from events", "--log", "/proc/self/task"], "log.not_found", "--log PATH"),
    ],
)
def test_looking_for_what_is_not_there_fails_and_says_what_to_do(
    log: str,
    arguments: list[str],
    code: str,
    next_step: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = [] if "--log" in arguments else ["--log", log]
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, *place])
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert f"({code})" in shown.err
    assert next_step in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", [["history", "twice", "t-1"], ["status", "twice", "t-1"]])
def test_nothing_that_a_tenant_wrote_steers_the_terminal(log: str, command: list[str]) -> None:
    shown = run(*command, "--log", log)
    assert shown.exit_code == 0
    assert "\x1b" not in shown.stdout
    assert "\x07" not in shown.stdout


def test_a_whole_log_verifies_and_a_damaged_one_does_not(log: str, tmp_path: Path) -> None:
    import shutil

    assert run("verify", "--log", log).exit_code == 0
    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    (bundle, *_) = sorted((copy / "code").iterdir())
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bundle.chmod(0o600)
    bundle.write_bytes(bytes(data))
    assert run("verify", "--log", str(copy)).exit_code == 1


@pytest.mark.parametrize("place", ["empty", "missing", "pictures"])
def test_verifying_where_no_log_is_fails_and_says_what_to_do(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures" / "2024").mkdir(parents=True)
    (tmp_path / "pictures" / "2024" / "one.png").write_bytes(b"of somebody else")
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", "--log", str(tmp_path / place)])
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{tmp_path / place} " in shown.err
    assert "--log PATH" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["sql", "selec 1"], "query.invalid"),
        (["status", "twice", "nobody"], "instance.not_found"),
        (["create", "twice", "--params", "{"], "invalid"),
        (["sql", "select 1", "--format", "xml"], "invalid"),
    ],
)
def test_errors_go_to_stderr_with_their_code(
    log: str, arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--log", log])
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert f"({code})" in shown.err
    assert shown.out == ""


@pytest.mark.ray
def test_code_is_deployed_and_run_from_the_command_line(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "index.py").write_text(
        "from dynamic_workflows import WorkflowEntrypoint\n"
        "class TenantWorkflow(WorkflowEntrypoint):\n"
        "    async def run(self, event, step):\n"
        "        return await step.do('double', lambda: event.payload['n'] * 2)\n"
    )
    log = str(tmp_path / "log")
    for command in (
        ["deploy", "acme", str(code)],
        ["create", "acme", "--id", "i-1", "--params", '{"n": 21}', "--wait"],
    ):
        script = f"from dynamic_workflows.cli import main\nmain({[*command, '--log', log]!r})\n"
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["i-1", "42"]
    assert "complete" in run("ls", "acme", "--log", log).stdout
