"""What goes wrong with the wake-ups of a tenant, after accidents."""

from __future__ import annotations

import life_explorer


def wrong_of(depth: int, *, naps: int = 2, pool_size: int = 0) -> list[str]:
    """The first schedules that break a promise, with what they break."""
    found = []
    for exceptions, story in life_explorer.explore(depth, naps=naps, pool_size=pool_size):
        if story.wrong:
            found.append(f"{exceptions}: {story.wrong}")
            if len(found) == 3:
                break
    return found
