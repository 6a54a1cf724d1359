"""Where this repository's files lie, for tests in any room."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
DOCS = ROOT / "docs"
IMPORTS = (str(SUPPORT), str(TESTS / "security"))
"""Where programs and isolates of tests find what tests share."""
