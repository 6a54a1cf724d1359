"""Attack each set of walls that is named and print what came of it, as JSON.

`python tests/security/attacks/report.py COLUMN ...` may run as another user than the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    TESTS = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(TESTS / "support"), str(TESTS / "security"), str(TESTS.parent)]

from paths import IMPORTS, ROOT

from attacks.arena import COLUMNS, try_all
from attacks.catalogue import ATTACKS

ORDINARY = 64_991
"""A user of no rights, for the hard case: supervisor and isolates share it."""

Report = dict[str, dict[str, list[str]]]


async def report(columns: list[str]) -> Report:
    """By column and attack: verdict and detail."""
    found: Report = {}
    for column in columns:
        outcomes = await try_all(COLUMNS[column], ATTACKS)
        found[column] = {name: [o.verdict, o.detail] for name, o in outcomes.items()}
    return found


def report_as_ordinary_user(columns: list[str]) -> Report | None:
    """The same in a process of a user without rights; None where no interpreter can be reached."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}"):
        if run_as_ordinary_user([python, "-c", "import msgspec, pytest"]) is not None:
            found: Report = json.loads(run_as_ordinary_user([python, __file__, *columns]) or "{}")
            return found
    return None


def run_as_ordinary_user(command: list[str]) -> str | None:
    """Its output, or None if it fails; errors go to ours."""
    places = [*IMPORTS, str(ROOT), *(path for path in sys.path if path)]
    try:
        done = subprocess.run(
            command,
            user=ORDINARY,
            group=ORDINARY,
            extra_groups=[],
            env={"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if command[1] == "-c" else None,
            timeout=240,
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


if __name__ == "__main__":
    print(json.dumps(asyncio.run(report(sys.argv[1:]))))
