"""Writes the table of attacks into isolation.md: `python docs/isolation.py`, as root on Linux.

As root, because it then measures as an ordinary user who shares nothing with the one who asks.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from attacks.arena import COLUMNS  # noqa: E402
from attacks.catalogue import ATTACKS  # noqa: E402
from attacks.report import Report, report, report_as_ordinary_user  # noqa: E402
from isolates import isolates  # noqa: E402

PAGE = ROOT / "docs" / "isolation.md"
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"


async def level() -> str:
    """The walls of this host for an ordinary user, whose isolates are no users of their own."""
    async with isolates() as made:
        return (await made.ready()).removesuffix("+uids")


def render(found: Report, walls: str) -> str:
    """The table."""
    system = f"Linux {platform.release().split('-')[0]}, {platform.machine()}"
    lines = [
        f"Measured on {system}, Python {platform.python_version()}, walls `{walls}`;",
        "supervisor and isolates share an ordinary user, which is the hard case. "
        f"{len(ATTACKS)} attacks.",
        "",
        "| " + " | ".join(["attack", *COLUMNS]) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for _, attacks in groupby(ATTACKS, key=lambda attack: attack.group):
        for attack in attacks:
            cells = [found[column][attack.name][0] for column in COLUMNS]
            lines.append("| " + " | ".join([attack.name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    walls = asyncio.run(level())
    found = report_as_ordinary_user(list(COLUMNS)) or asyncio.run(report(list(COLUMNS)))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{render(found, walls)}\n{END}{after}")


if __name__ == "__main__":
    main()
