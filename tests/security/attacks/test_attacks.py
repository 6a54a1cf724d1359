"""No attack of the catalogue gets through the walls, and the table in the docs says so."""

from __future__ import annotations

import asyncio
import os
import re

import pytest
from isolates import isolates
from paths import DOCS

from dynamic_workflows.eventlog.errors import SandboxUnavailable

from .arena import COLUMNS, try_all
from .catalogue import ATTACKS
from .report import Report, report_as_ordinary_user

DOCS = DOCS / "isolation.md"
KNOWN = {attack.name for attack in ATTACKS if attack.open_without_jail}
WHOLE = {"all three": KNOWN, "all + jail": set[str]()}
"""The sets of walls that deployments get, and what may be open in them."""


async def skip_unless_it_stands(column: str) -> None:
    async with isolates(sandbox=COLUMNS[column]) as made:
        try:
            await made.ready()
        except SandboxUnavailable as error:
            pytest.skip(str(error))


def test_there_are_many_attacks_each_with_a_name_of_its_own() -> None:
    assert len(ATTACKS) >= 200
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("column", WHOLE)
async def test_no_attack_gets_through(column: str) -> None:
    await skip_unless_it_stands(column)
    outcomes = await try_all(COLUMNS[column], ATTACKS)
    opened = {name for name, outcome in outcomes.items() if outcome.verdict == "open"}
    assert opened <= WHOLE[column]


async def test_no_attack_gets_through_where_supervisor_and_isolate_share_a_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: the other tests share a user already")
    for column in WHOLE:
        await skip_unless_it_stands(column)
    found = await asyncio.to_thread(report_as_ordinary_user, list(WHOLE))
    if found is None:
        pytest.skip("no interpreter that an ordinary user can reach")
    assert set(found) == set(WHOLE), "the report ended early"
    for column, known in WHOLE.items():
        assert opened_in(found, column) <= known


def opened_in(found: Report, column: str) -> set[str]:
    return {name for name, (verdict, _) in found[column].items() if verdict == "open"}


def table() -> Report:
    """The table of the docs."""
    text = DOCS.read_text().partition("<!-- attacks: begin -->")[2]
    text = text.partition("<!-- attacks: end -->")[0]
    rows = re.findall(r"^\| (.+?) \|$", text, re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    columns = cells[0][1:]
    return {
        column: {row[0]: [row[index + 1], ""] for row in cells[1:]}
        for index, column in enumerate(columns)
    }


def test_the_table_in_the_docs_has_every_attack_and_what_is_open() -> None:
    found = table()
    assert list(found) == list(COLUMNS)
    for rows in found.values():
        assert list(rows) == [attack.name for attack in ATTACKS]
    for column, known in WHOLE.items():
        assert opened_in(found, column) == known


@pytest.mark.slow
async def test_the_table_in_the_docs_is_what_this_kernel_shows() -> None:
    level = re.search(r"landlock\d+", DOCS.read_text())
    async with isolates() as made:
        if level is None or level[0] not in await made.ready():
            pytest.skip("the table is of another kernel")
    found = await asyncio.to_thread(report_as_ordinary_user, list(COLUMNS))
    if found is None:
        pytest.skip("no interpreter that an ordinary user can reach")
    documented = table()
    for column in COLUMNS:
        assert opened_in(found, column) == opened_in(documented, column)
