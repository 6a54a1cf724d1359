"""Where a log can lie: said and checked before anything starts, and the same for every process."""

from __future__ import annotations

from pathlib import Path

import pytest

import dynamic_workflows as dw
from dynamic_workflows.eventlog.errors import InvalidError, Unavailable
from dynamic_workflows.eventlog.store import open_store, root_of


@pytest.mark.parametrize("place", ["", "  ", "bogus://x/y", "file://", "file://data", "a\0b"])
def test_what_is_no_place_for_a_log_is_refused_at_once(place: str) -> None:
    with pytest.raises(InvalidError, match="is no place for a log"):
        dw.connect(place)


def test_a_place_is_one_place_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sp ace ü 日本 100%"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    written: list[str | Path] = [folder, str(folder), folder.as_uri(), folder.name]
    written.append(f"~/{folder.name}")
    assert {root_of(place) for place in written} == {str(folder)}
    assert open_store(folder.as_uri()).root == open_store(root_of(folder.as_uri())).root


def test_a_platform_reads_where_it_was_connected_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    platform = dw.connect("data")
    monkeypatch.chdir("/")
    assert platform._log == str(tmp_path / "data")


async def test_a_log_that_cannot_be_written_is_refused_before_ray_is_started(
    tmp_path: Path,
) -> None:
    import ray

    (tmp_path / "file").write_text("not a directory")
    was_initialized = ray.is_initialized()
    with pytest.raises(Unavailable, match="Not a directory"):
        async with dw.connect(tmp_path / "file"):
            pass
    assert ray.is_initialized() == was_initialized


async def test_a_log_in_memory_is_refused_on_ray() -> None:
    with pytest.raises(InvalidError, match="dynamic_workflows.testing"):
        await dw.connect("memory://").__aenter__()
