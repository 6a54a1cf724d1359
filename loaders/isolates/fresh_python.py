"""Fresh Python: what the interpreter of a zygote is started with, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def environment(**own: str) -> dict[str, str]:
    """Return an environment without credentials: `own`, and what an interpreter needs."""
    clean = {"LC_ALL": "C.UTF-8", **own}
    for name in ("LD_LIBRARY_PATH", "PYTHONHOME"):
        if name in os.environ:
            clean[name] = os.environ[name]
    return clean


def search_path() -> list[str]:
    """Return where the zygote finds the SDK and the installed packages, however installed."""
    sdk = Path(__file__).parents[2]
    if sdk.name != "dynamic_workflows":  # loaded through the checkout's link, resolved
        sdk = sdk / "dynamic_workflows"
    places = [str(sdk.parent), *(path for path in sys.path if os.path.isdir(path))]
    return list(dict.fromkeys(places))
