"""The cluster file is one that Ray's launcher accepts, and it installs and starts this project."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
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
