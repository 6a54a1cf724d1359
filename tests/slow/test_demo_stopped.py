"""The demo is stopped at any moment, and goes on."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from demo_runs import demo_command

from dynamic_workflows.eventlog import connect_duckdb


@pytest.fixture
def demo_run(tmp_path: Path) -> list[str]:
    return demo_command(tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_stopped_by_a_key_goes_on_the_next_time(
    demo_run: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen(demo_run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "kill -9" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    second = subprocess.run(demo_run, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "run 2 on the same log" in second.stdout
    with connect_duckdb(tmp_path / "log") as log:
        ended = dict(log.sql("select status, count(*) from instances group by 1").fetchall())
    assert ended == {"complete": 16, "errored": 2}
