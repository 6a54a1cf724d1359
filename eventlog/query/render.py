"""Render: the answer of a query as text or bytes, for a terminal, a file or another program.

Cells hold what tenants wrote. In a table nothing of that reaches the terminal as a command: control
characters, escapes and marks that change the direction of text are shown as `\\\\x1b`, not sent.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..errors import InvalidError
from ..sanitize import printable

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "parquet"]

FORMATS: tuple[Format, ...] = ("table", "csv", "json", "parquet")
CELL_WIDTH_MAX = 60


def render(table: pa.Table, format: Format, *, width: int = CELL_WIDTH_MAX) -> str | bytes:
    """Return the table as text that ends with a newline, or as bytes (parquet).

    `table`: aligned columns, cells cut to `width` characters. `csv`: RFC 4180 with a header; null
    is empty. `json`: one list of objects. Both hold the values uncut. Raises InvalidError.
    """
    if format == "table":
        return _table(table, width)
    if format == "csv":
        return _csv(table)
    if format == "json":
        return _json(table)
    if format == "parquet":
        return _parquet(table)
    raise InvalidError(f"{format!r} is no output format: use {', '.join(FORMATS)}")


def _table(table: pa.Table, width: int) -> str:
    names = [_cut(printable(name), width) for name in table.column_names]
    rows = [
        [_cut(printable(_cell(value)), width) for value in row]
        for row in zip(*(column.to_pylist() for column in table.columns), strict=True)
    ]
    is_number = [_is_number(field.type) for field in table.schema]
    widths = [max(map(_width, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        _line(names, widths, is_number),
        "  ".join("-" * one for one in widths),
        *(_line(row, widths, is_number) for row in rows),
        f"({table.num_rows} row{'' if table.num_rows == 1 else 's'})",
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    padded = []
    for cell, width, number in zip(cells, widths, is_number, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if number else cell + space)
    return "  ".join(padded)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept, used = [], 1
    for one in text:
        used += _width(one)
        if used > width:
            break
        kept.append(one)
    return "".join(kept) + "…"


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, list | dict):
        return json.dumps(value, default=_cell, ensure_ascii=False)
    return str(value)


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _csv(table: pa.Table) -> str:
    import csv

    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.column_names)
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _json(table: pa.Table) -> str:
    if not table.num_rows:
        return "[]\n"
    rows = [
        json.dumps(
            dict(zip(table.column_names, map(_finite, row), strict=True)),
            default=_cell,
            ensure_ascii=False,
            allow_nan=False,
        )
        for row in zip(*(column.to_pylist() for column in table.columns), strict=True)
    ]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def _finite(value: object) -> object:
    """Return null for NaN and infinities, which JSON cannot hold; DuckDB does the same."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return value


def _parquet(table: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
