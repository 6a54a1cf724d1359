"""What `serve` is given is checked before a platform starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.web.serve import keys_of, loader_of, serve


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.json"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_of_keys_is_read(tmp_path: Path) -> None:
    assert keys_of(keys_file(tmp_path, '{"a long random text": "viewer"}')) is not None


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("{}", 0o644, "chmod 600"),
        ("[", 0o600, "no JSON"),
        ("[1]", 0o600, "holds an object"),
        ('{"k": "emperor"}', 0o600, "emperor"),
    ],
)
def test_a_file_of_keys_that_is_wrong_says_what_to_do(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        keys_of(keys_file(tmp_path, text, mode))


def test_a_missing_file_of_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="nowhere"):
        keys_of(tmp_path / "nowhere")


@pytest.mark.parametrize("load", ["json", "json:", "json:none", "no_such_module:load", "", ":x"])
def test_a_load_that_is_not_there_is_refused(load: str) -> None:
    with pytest.raises(InvalidError, match="MODULE:FUNCTION"):
        loader_of(load, None)


async def test_a_folder_of_tenants_answers_each_by_its_name_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "tenants" / "acme").mkdir(parents=True)
    (tmp_path / "tenants" / "acme" / "index.py").write_text("X = 1")
    (tmp_path / "index.py").write_text("X = 'outside'")
    load = loader_of(None, tmp_path / "tenants")
    assert load is not None
    assert (await load("acme")).modules["index.py"] == "X = 1"
    for name in ("nobody", "..", ".", "acme/..", "/etc"):
        with pytest.raises(Exception, match=r"no folder|no name|cannot"):
            await load(name)


async def test_an_address_of_the_network_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="--keys"):
        await serve(str(tmp_path), host="0.0.0.0", port=0)
