"""The settings: flat or in the tables of their groups, of one tenant, and from a file."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from dynamic_workflows.actors.settings.config_file import read_config
from dynamic_workflows.actors.settings.platform_config import GROUPS, PlatformConfig
from dynamic_workflows.actors.settings.tenant_limits import TenantLimits
from dynamic_workflows.eventlog.errors import InvalidError


def test_settings_of_one_tenant_stand_above_the_platforms() -> None:
    config = PlatformConfig(
        steps_max=5,
        retention={"success": "1 day"},  # type: ignore[arg-type]
        tenants={"acme": TenantLimits(steps_max=9, creates_per_second_max=2)},
    )
    acme, other = config.core("acme"), config.core("globex")
    assert (acme.steps_max, other.steps_max) == (9, 5)
    assert (acme.creates_per_second_max, acme.creates_burst_max) == (2, 2)
    assert (other.creates_per_second_max, other.creates_burst_max) == (300, 100_000)
    assert other.retention_success_us == 86_400_000_000
    assert other.retention_error_us == 30 * 86_400_000_000
    for wrong in ({"steps_max": 0}, {"isolation": "none"}, {"retention": {"success": "soon"}}):
        with pytest.raises(ValidationError):
            PlatformConfig(**wrong)


@pytest.mark.parametrize("kind", [*GROUPS.values(), PlatformConfig])
def test_every_setting_says_what_it_is(kind: type) -> None:
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) != "model_config":
            assert isinstance(after, ast.Expr), f"{ast.unparse(field.target)} has no docstring"


def test_every_setting_is_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group.model_fields]
    assert sorted([*names, "tenants"]) == sorted(PlatformConfig.model_fields)
    assert not GROUPS.keys() & PlatformConfig.model_fields.keys()


def test_the_limits_of_one_tenant_have_the_bounds_of_the_platforms() -> None:
    for name, field in TenantLimits.model_fields.items():
        assert field.metadata == PlatformConfig.model_fields[name].metadata, name


def test_a_setting_may_stand_in_the_table_of_its_group_or_at_the_top() -> None:
    given = {"isolates": {"memory_mb": 64}, "log": {"log_group": "ops"}, "steps_max": 5}
    config = PlatformConfig.model_validate(given)
    assert config == PlatformConfig(memory_mb=64, log_group="ops", steps_max=5)
    assert config.model_fields_set == {"memory_mb", "log_group", "steps_max"}
    assert PlatformConfig.model_validate_json(config.model_dump_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"log": {"memory_mb": 64}}, "log.memory_mb: .* the table `isolates`"),
        ({"log": {"memory": 64}}, "log.memory: there is no setting"),
        ({"log": {7: 64}}, "log.7: there is no setting"),
        ({"log": 64}, "log: .* a table"),
        ({"logs": {}}, "logs"),
        ({"isolates": {"memory_mb": 64}, "memory_mb": 64}, "memory_mb: it is given twice"),
        ({"isolates": {"memory_mb": 1}}, "memory_mb"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PlatformConfig.model_validate(given)


def file_of(folder: Path, text: str, name: str = "platform.toml", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_of_settings_is_read(tmp_path: Path) -> None:
    toml = "steps_max = 5\n[isolates]\nmemory_mb = 64\n[tenants.acme]\nsteps_max = 9\n"
    given = {"steps_max": 5, "memory_mb": 64, "tenants": {"acme": {"steps_max": 9}}}
    expected = PlatformConfig.model_validate(given)
    assert read_config(file_of(tmp_path, toml, mode=0o644)) == expected
    assert read_config(file_of(tmp_path, json.dumps(given), "platform.json")) == expected
    assert expected.of("acme").steps_max == 9


@pytest.mark.parametrize(
    ("text", "name", "mode", "said"),
    [
        ("steps_max", "a.toml", 0o600, "is no TOML"),
        ("{", "a.json", 0o600, "is no JSON"),
        ("[" * 100_000, "a.json", 0o600, "is no JSON"),
        ("[]", "a.json", 0o600, "PlatformConfig"),
        ("steps_max = 0", "a.toml", 0o600, "steps_max: .*greater than or equal to 1"),
        ("[isolates]\nmemory = 1", "a.toml", 0o600, "isolates.memory: there is no setting"),
        ("[tenants.acme]\nmemory = 1", "a.toml", 0o600, "tenants.acme.memory: "),
        (f'code_keys = ["{"A" * 43}="]', "a.toml", 0o644, "chmod 600"),
    ],
)
def test_a_wrong_file_of_settings_says_what_to_do(
    tmp_path: Path, text: str, name: str, mode: int, said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        read_config(file_of(tmp_path, text, name, mode))


def test_a_wrong_key_in_a_file_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        read_config(file_of(tmp_path, 'code_keys = ["a secret"]'))
    assert "a secret" not in str(caught.value)


def test_a_missing_file_of_settings_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="nowhere"):
        read_config(tmp_path / "nowhere")
