"""Guard: which SQL a tenant may run: one SELECT, over the views, that reaches nothing outside.

DuckDB itself has external access off and its configuration locked; this is the second wall. It
looks at the parsed statement, not at its text: a table must be one of the views or a name that the
statement defines, and a table function must be on a short list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .errors import QueryError
from .views import NAMES

if TYPE_CHECKING:
    import duckdb

TABLE_FUNCTIONS = frozenset({"generate_series", "json_each", "json_tree", "range", "unnest"})
_TELLTALE = frozenset({"current_setting", "getvariable", "getenv", "pg_read_file"})
_SCHEMAS = frozenset({"", "main"})
# DuckDB's own views: not to be had by giving their names to a CTE elsewhere in the statement.
_INTERNAL = ("duckdb_", "pg_", "pragma_", "sqlite_")
_CATALOGS = frozenset({"", "memory"})


def check_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise QueryError unless the text is one SELECT that stays within the views."""
    import duckdb

    try:
        statements = connection.extract_statements(sql)
        is_select = [one.type == duckdb.StatementType.SELECT for one in statements]
        if is_select != [True]:
            raise QueryError("a tenant's query is one SELECT statement")
        (text,) = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0]
        tree = json.loads(text)
    except duckdb.Error as error:
        raise QueryError(str(error)) from None
    except TypeError:
        raise QueryError("a query is text that can be written as UTF-8") from None
    except RecursionError:
        raise QueryError("this query nests too deep to be checked: make it simpler") from None
    if tree["error"]:
        raise QueryError(f"this query cannot be checked: {tree['error_message']}")
    nodes = list(_nodes(tree["statements"]))
    defined = {entry["key"].lower() for node in nodes for entry in _ctes(node)}
    for node in nodes:
        _check(node, defined)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the tree; with its own stack, since queries nest as deep as they like."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _ctes(node: dict[str, Any]) -> list[dict[str, Any]]:
    ctes = node.get("cte_map")
    return ctes.get("map", []) if isinstance(ctes, dict) else []


def _check(node: dict[str, Any], defined: set[str]) -> None:
    kind = node.get("type")
    if kind == "TABLE_FUNCTION":
        name = str(node["function"].get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            raise QueryError(f"the table function {name} is not available to a tenant's query")
    elif kind == "BASE_TABLE":
        name = str(node.get("table_name", "")).lower()
        is_known = name in NAMES or (name in defined and not name.startswith(_INTERNAL))
        if not (
            is_known
            and str(node.get("schema_name", "")).lower() in _SCHEMAS
            and str(node.get("catalog_name", "")).lower() in _CATALOGS
        ):
            raise QueryError(f"there is no table {name}: the views are {', '.join(NAMES)}")
    elif str(node.get("function_name", "")).lower() in _TELLTALE:
        raise QueryError(
            f"the function {node['function_name']} is not available to a tenant's query"
        )
