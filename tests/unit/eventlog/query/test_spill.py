"""Where queries spill: a folder of one process that no other user enters or takes beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.query.spill_directory import spill_folder

CODE = (
    "from dynamic_workflows.eventlog.query.spill_directory import spill_folder\n"
    "print(spill_folder())"
)


def test_the_folder_is_closed_whatever_the_umask() -> None:
    before = os.umask(0)
    try:
        folder = Path(spill_folder())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(folder) == spill_folder()


def test_it_is_nobody_elses_and_goes_with_its_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert done.stdout.strip() != spill_folder()


def test_the_platforms_queries_spill_there(tmp_path: Path) -> None:
    (tmp_path / "tenants").mkdir()
    reader = Reader(str(tmp_path))
    try:
        (found,) = reader.query("select current_setting('temp_directory') as place").to_pylist()
    finally:
        reader.close()
    assert found["place"] == spill_folder()
    assert Path(found["place"]).parent == Path(tempfile.gettempdir())
