"""Plain JSON: the codec's text as SQL reads it, each tagged value in the form that a cast takes.

The log keeps the tags, which say of what type a value is; `codec` reads them. In the views they
would stand between a query and the value: `{"total": {"$decimal": "1.10"}}` is shown as
`{"total": "1.10"}`. docs/analytics.md lists the forms. It is SQL, since DuckDB takes functions in
Python only beside packages that nothing else here needs. Nothing here fails: what is no tag of the
codec's stays as it is.

Tags around a text are replaced where they stand: the codec writes no spaces, and within a string
every quote is escaped, so `{"$decimal":"` is never part of one. Tags around lists need their
closing brace, which is found from the inside out: a pass turns the innermost brackets into marks,
so that the next ones around them become the innermost. A text without tags costs one search.
"""

from __future__ import annotations

LEVELS_MAX = 16
"""So many brackets within each other are looked through; tags around more stay."""

# Marks stand for brackets that were dealt with: no control character is ever raw in JSON.
_OPEN_LIST, _CLOSE_LIST, _OPEN_DICT, _CLOSE_DICT = (f"chr({number})" for number in range(1, 5))
_MARKS = "chr(1) || chr(2) || chr(3) || chr(4)"
_INNER = r"[^][{}]*"
_STRING = r'"(?:[^"\\]|\\.)*"'
_INT = r'\{"\$int":"(-?0x[0-9a-f]+)"\}'
_DICT = rf'\{{"\$dict":(\x01{_INNER}\x02)\}}'
_SCALARS = (
    # A moment may stand in a list with its zone's name, which is left out.
    (
        r'\{"\$(?:decimal|uuid|bytes|float|date|datetime|time)":'
        rf'\[?("[^"\\]*")(?:,"[a-z]*",{_STRING},[01]\])?\}}',
        r"\1",
    ),
    (
        r'\{"\$timedelta":\[(-?[0-9]+),([0-9]+),([0-9]+)\]\}',
        r'"\1 days \2 seconds \3 microseconds"',
    ),
)
_IS_NESTED = r"""regexp_matches(text, '\{"\$(?:tuple|set|frozenset|dict|int)":')"""


def _each(text: str, pattern: str, shown: str) -> str:
    """The text with each match of a pattern with one group replaced by an expression over `part`.

    The expression says `part[2]` for the group, which is null behind the last match.
    """
    return f"""array_to_string(list_transform(
        list_zip(
            string_split(regexp_replace({text}, '{pattern}', chr(5), 'g'), chr(5)),
            regexp_extract_all({text}, '{pattern}', 1)),
        lambda part: part[1] || coalesce({shown}, '')), '')"""


def _replaced(text: str, *replacements: tuple[str, str]) -> str:
    for pattern, by in replacements:
        text = f"regexp_replace({text}, '{pattern}', '{by}', 'g')"
    return text


# Brackets within strings in another spelling, so that all that are left are structure.
_SPELT = rf"""array_to_string(list_transform(
    regexp_extract_all(text, '{_STRING}|[^"]+'),
    lambda piece: CASE WHEN starts_with(piece, '"') AND regexp_matches(piece, '[][{{}}]')
        THEN replace(replace(replace(replace(
            piece, '[', '\u005b'), ']', '\u005d'), '{{', '\u007b'), '}}', '\u007d')
        ELSE piece END), '')"""

# Digits where 128 bits hold it, else the hexadecimal text.
_WHOLE = """coalesce(
    CASE WHEN starts_with(part[2], '-') THEN '-' || TRY_CAST(part[2][2:] AS HUGEINT)
        ELSE TRY_CAST(part[2] AS HUGEINT)::VARCHAR END,
    '"' || part[2] || '"')"""

# 1 and "1" are two keys in Python and one in JSON: then the pairs stay, and nothing is lost.
_PAIRS = "TRY_CAST(TRY_CAST(hot.unmarked(part[2]) AS JSON) AS JSON[])"
_NAME = """CASE json_type(pair, '$[0]') WHEN 'VARCHAR' THEN json_extract(pair, '$[0]')::VARCHAR
    ELSE to_json(json_extract(pair, '$[0]')::VARCHAR)::VARCHAR END"""
_OBJECT = f"""CASE
    WHEN len(list_distinct(list_transform({_PAIRS}, lambda pair: {_NAME}))) < len({_PAIRS})
    THEN hot.unmarked(part[2])
    ELSE '{{' || array_to_string(list_transform(
        {_PAIRS}, lambda pair: {_NAME} || ':' || json_extract(pair, '$[1]')::VARCHAR), ',') || '}}'
    END"""

# Each lambda within another doubles what DuckDB takes to bind them, so there are few.
_DICTS = _each("text", _DICT, f"hot.marked({_OBJECT})")

_PASS = f"""CASE WHEN NOT contains(rest, '"$') THEN rest ELSE regexp_replace(
    hot.dicts(regexp_replace(
        regexp_replace(rest, '\\[({_INNER})\\]', {_OPEN_LIST} || '\\1' || {_CLOSE_LIST}, 'g'),
        '\\{{"\\$(?:tuple|set|frozenset)":({_INNER})\\}}', '\\1', 'g')),
    '\\{{({_INNER})\\}}', {_OPEN_DICT} || '\\1' || {_CLOSE_DICT}, 'g') END"""

_LEVELS = f"""list_reduce(
    range({LEVELS_MAX}), lambda rest, level: {_PASS}, hot.texts(hot.spelt(hot.scalars(text))))"""

NESTED = "a value in this log has tags around lists"
"""What a view of `hot.simple` fails with where `hot.plain` is needed."""


def _tagged(nested: str) -> str:
    """The text, with an expression for one in which more is tagged than scalars."""
    # Every view repeats this, and DuckDB binds it anew for every statement: it has to be short.
    return f"""CASE WHEN contains(text, '"$') THEN
        CASE WHEN {_IS_NESTED} THEN {nested} ELSE hot.scalars(text) END
        ELSE text END"""


MACROS = (
    f"CREATE MACRO hot.scalars(text) AS {_replaced('text', *_SCALARS)};",
    f"CREATE MACRO hot.simple(text) AS {_tagged(f'error({NESTED!r})')};",
)
"""`hot.simple(text)`, for views that fail at the first text with other tags than scalars have."""

NESTED_MACROS = (
    f"CREATE MACRO hot.spelt(text) AS {_SPELT};",
    f"CREATE MACRO hot.unmarked(text) AS translate(text, {_MARKS}, '[]{{}}');",
    f"CREATE MACRO hot.marked(text) AS translate(hot.spelt(text), '[]{{}}', {_MARKS});",
    f"CREATE MACRO hot.texts(text) AS {_each('text', _INT, _WHOLE)};",
    f"CREATE MACRO hot.dicts(text) AS {_DICTS};",
    f"CREATE MACRO hot.plain(text) AS {_tagged(f'hot.unmarked({_LEVELS})')};",
)
"""`hot.plain(text)`, and what it is made of: for when it is needed, since DuckDB takes its time."""
