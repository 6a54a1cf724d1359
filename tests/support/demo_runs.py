"""The demo as people start it."""

from __future__ import annotations

import sys
from pathlib import Path

from paths import ROOT

EXAMPLES = ROOT / "examples"


ARTIFACT = "2a90e2e3cccbc4a2fe1d0300ad1225850c1c10843e671317d8dc8c8ee05d2399"


def demo_command(tmp_path: Path) -> list[str]:
    """The command that starts it, on a log of its own."""
    return [sys.executable, str(EXAMPLES / "demo.py"), "--log", str(tmp_path / "log")]
