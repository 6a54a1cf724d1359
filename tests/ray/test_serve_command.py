"""`dynamic-workflows serve` answers HTTP beside a platform of its own, in its real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.ray

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def greet():
            return "hello " + event.payload["name"]
        return await step.do("greet", greet)
"""


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    """A folder with the code of one tenant."""
    folder = tmp_path / "tenants" / "acme"
    folder.mkdir(parents=True)
    (folder / "index.py").write_text(CODE)
    return folder.parent


@pytest.fixture
def served(tmp_path: Path, tenants: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and the URL that it says."""
    settings = tmp_path / "platform.toml"
    settings.write_text("[code]\ncode_ttl_seconds = 0\n")
    call = [sys.executable, "-m", "dynamic_workflows.cli", "serve", "--log", str(tmp_path / "log")]
    call += ["--tenants", str(tenants), "--config", str(settings), "--port", "0"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"listening on (http://\S+)\n", process.stdout.readline())
        assert found is not None
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def run_one(url: str, id: str) -> object:
    path = f"{url}/v1/tenants/acme/workflows/TenantWorkflow/instances"
    made = httpx.post(path, json={"id": id, "params": {"name": "Ada"}}, timeout=60)
    assert made.status_code == 201, made.text
    answer = httpx.get(f"{path}/{id}/result", params={"timeout": 50}, timeout=60)
    return answer.json()["output"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_tenants_of_a_folder_run_over_http_changed_code_is_seen_and_signals_end_it(
    served: tuple[subprocess.Popen[str], str], tenants: Path, tmp_path: Path, number: int
) -> None:
    process, url = served
    assert run_one(url, "a") == "hello Ada"
    (tenants / "acme" / "index.py").write_text(CODE.replace("hello", "bye"))
    assert run_one(url, "b") == "bye Ada"
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    look = [sys.executable, "-m", "dynamic_workflows.cli", "verify", "--log", str(tmp_path / "log")]
    assert subprocess.run(look, capture_output=True, timeout=60, check=False).returncode == 0
