"""Output of queries: readable, exact, and harmless to a terminal."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.query.render import render
from dynamic_workflows.eventlog.sanitize import printable

WHEN = dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC)
TABLE = pa.table(
    {
        "status": ["complete", None],
        "n": [1, 20],
        "at": pa.array([WHEN, None], pa.timestamp("us", "UTC")),
        "money": [Decimal("1.50"), None],
        "list": [[1, 2], None],
        "float": [float("nan"), 0.5],
    }
)


def test_table_is_aligned_with_numbers_to_the_right() -> None:
    assert render(TABLE.select(["status", "n"]), "table") == (
        "status     n\n--------  --\ncomplete   1\n          20\n(2 rows)\n"
    )


def test_table_without_rows_shows_its_columns() -> None:
    assert render(TABLE.slice(0, 0).select(["n"]), "table") == "n\n-\n(0 rows)\n"


def test_long_and_wide_cells_are_cut_to_the_width() -> None:
    table = pa.table({"x": ["a" * 100, "東京" * 30]})
    lines = str(render(table, "table", width=10)).splitlines()
    assert lines[2:4] == ["a" * 9 + "…", "東京東京…"]


HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "a\nb\r\tc",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u200b\ufeff",
    "\u2028\u2029\x85",
    "\x00\x7f",
    "\U000e0041",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_table_shows_commands_to_the_terminal_instead_of_sending_them(text: str) -> None:
    shown = str(render(pa.table({text: [text]}), "table"))
    assert not [one for one in shown.replace("\n", "") if not one.isprintable()]
    assert len(shown.splitlines()) == 4
    assert "\\" in shown


@given(st.text())
def test_printable_text_is_printable_and_plain_text_stays(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if text.isascii() and text.isprintable():
        assert shown == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_csv_and_json_give_every_text_back_exactly(texts: list[str]) -> None:
    table = pa.table({"x": texts, "y": range(len(texts))})
    rows = list(csv.DictReader(io.StringIO(str(render(table, "csv")), newline="")))
    assert [row["x"] for row in rows] == texts
    assert json.loads(render(table, "json")) == table.to_pylist()


def test_json_has_a_form_for_every_type() -> None:
    first, second = json.loads(render(TABLE, "json"))
    assert first == {
        "status": "complete",
        "n": 1,
        "at": "2026-01-02 03:04:05.000006+00:00",
        "money": "1.50",
        "list": [1, 2],
        "float": None,
    }
    assert second["float"] == 0.5
    assert render(TABLE.slice(0, 0), "json") == "[]\n"


def test_parquet_is_the_table_itself() -> None:
    data = render(TABLE, "parquet")
    assert isinstance(data, bytes)
    assert pq.read_table(pa.BufferReader(data)).schema == TABLE.schema


def test_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidError, match="table, csv, json, parquet"):
        render(TABLE, "xml")  # type: ignore[arg-type]
