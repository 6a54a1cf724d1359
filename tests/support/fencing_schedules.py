"""Schedules of several owners of one log, explored in processes side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from paths import SUPPORT

SCHEDULES = int(os.environ.get("EXPLORER_SCHEDULES", "12000"))


FIRST_SEED = int(os.environ.get("EXPLORER_FIRST_SEED", "1"))


def explore(first_seed: int, schedules: int) -> None:
    """Explore so many schedules in as many processes as there are cores."""
    workers = max(1, min(os.cpu_count() or 1, 8))
    share = -(-schedules // workers)
    command = [sys.executable, str(SUPPORT / "explorer.py"), "--count", str(share), "--first"]
    processes = [
        subprocess.Popen(
            [*command, str(first_seed + n * share)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for n in range(workers)
    ]
    wrong: dict[str, list[str]] = {}
    for process in processes:
        out, err = process.communicate()
        assert out, err.decode()
        wrong |= json.loads(out)
    assert wrong == {}, "python tests/support/explorer.py --count 1 --first SEED repeats one"
