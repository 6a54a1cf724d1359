"""What goes wrong with the wake-ups of a tenant, after accidents."""

from __future__ import annotations

from typing import Any

import life_explorer


def wrong_of(depth: int, **scenario: Any) -> list[str]:
    """The first schedules that break a promise, with what they break."""
    found = []
    for exceptions, story in life_explorer.explore(depth, **scenario):
        if story.wrong:
            found.append(f"{exceptions}: {story.wrong}")
            if len(found) == 3:
                break
    return found
