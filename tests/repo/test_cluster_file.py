"""The cluster file is one that Ray's launcher accepts, and it installs and starts this project."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

REMOTE = "~/dynamic-workflows"


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


def test_the_cluster_file_matches_rays_schema(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    # The schema must be able to refuse, else the line above says nothing.
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "no_such_setting": 1}, schema)


def test_ray_up_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_more_workers_than_allowed_are_refused_by_the_same_check(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["tenants"]["min_workers"] = cluster["max_workers"] + 1
    with pytest.raises(ValueError, match="max_workers"):
        validate_config(prepare_config(cluster))


def test_the_checkout_is_sent_and_installed_on_every_node(cluster: dict[str, Any]) -> None:
    assert (ROOT / cluster["file_mounts"][REMOTE] / "pyproject.toml").is_file()
    assert any(f"pip install --quiet {REMOTE}" in line for line in cluster["setup_commands"])


def test_the_head_starts_the_platform_after_ray(cluster: dict[str, Any]) -> None:
    commands = cluster["head_start_ray_commands"]
    starts = [number for number, line in enumerate(commands) if "ray start --head" in line]
    platform = [number for number, line in enumerate(commands) if f"{REMOTE}/examples" in line]
    assert starts < platform
    assert len(platform) == 1
    script = re.search(rf"{re.escape(REMOTE)}/(\S+)", commands[platform[0]])
    assert script is not None
    assert (ROOT / script[1]).is_file()


def test_what_the_nodes_do_not_need_is_not_sent(cluster: dict[str, Any]) -> None:
    assert {".venv", ".git", "data"} <= set(cluster["rsync_exclude"])


def test_no_node_joins_without_the_token(cluster: dict[str, Any]) -> None:
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in commands)


@pytest.fixture
def home() -> Iterator[Path]:
    """The head's home: `~` of the commands, with the project where they look for it."""
    # Ray's sockets lie below, and their paths must stay short.
    with tempfile.TemporaryDirectory(prefix="h-", dir="/tmp") as name:
        home = Path(name)
        (home / "venv").symlink_to(Path(sys.executable).parent.parent)
        (home / "dynamic-workflows").symlink_to(ROOT)
        yield home


@pytest.mark.ray
def test_the_heads_commands_start_ray_and_then_the_platform(
    cluster: dict[str, Any], home: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home / "ray"),
        # The head finds its own Ray by itself; here other Rays may run beside it.
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    _stop, start, platform = cluster["head_start_ray_commands"]
    # There is no cloud to scale here, and the ports may be in use by others.
    start = start.replace("--port=6379", f"--port={port}").replace("--object-manager-port=8076", "")
    start = re.sub(r"--autoscaling-config=\S+", "--include-dashboard=false --block", start)
    platform = platform.replace("s3://your-bucket/dynamic-workflows", str(home / "log"))
    run("~/venv/bin/ray get-auth-token --generate")
    with subprocess.Popen(
        ["bash", "-c", start],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as head:
        try:
            assert head.stdout is not None
            assert any("Ray runtime started" in line for line in head.stdout)
            for _ in range(2):  # the second time the actors are there already
                assert f"running on {home}/log, 0 tenants" in run(platform)
        finally:
            # A polite end would wait half a minute for the actors, which never end by themselves.
            os.killpg(head.pid, signal.SIGKILL)
            head.communicate(timeout=60)
