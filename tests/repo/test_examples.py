"""The examples: the quickstart is the README's first one, and prints what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

QUICKSTART = ROOT / "examples" / "quickstart.py"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_first_example_is_the_quickstart() -> None:
    assert blocks("python")[0] == QUICKSTART.read_text()


@pytest.mark.ray
def test_the_quickstart_prints_what_the_readme_says(tmp_path: Path) -> None:
    # Its log is relative to where it runs. Twice: the second time, the log has a past.
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(QUICKSTART)],
            cwd=tmp_path,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == blocks("text")[0]


def test_every_target_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"`make ([a-z]+)", page.read_text()))
        assert named <= targets, page


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


async def test_the_tests_of_the_page_on_testing_run_as_printed() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    written: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "def test_" in block:
            exec(compile(block, "docs/testing.md", "exec"), written)
    tests = {name: test for name, test in written.items() if name.startswith("test_")}
    assert len(tests) == 4
    for test in tests.values():
        began = time.perf_counter()
        await test()
        # The promise is a second; a loaded machine gets more before it is called a failure.
        assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_python_block_of_a_document_compiles(page: str) -> None:
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    ):
        # Fragments may await, as the body of a coroutine does.
        body = "".join(f"    {line}\n" for line in block.splitlines())
        compile(f"async def _():\n    pass\n{body}", f"{page}:{number}", "exec")
