"""SQL guard: which SQL a tenant may run: one SELECT over the views, of listed parts and
functions.

It checks the statement as DuckDB has parsed it, and the plan that DuckDB makes of it, never the
text. What is not listed (`allowed_grammar`, `allowed_functions`) is refused. It is one layer of
several: behind it are a read-only transaction, a DuckDB without external access, and, where the
statement runs in a process of its own, the sandbox of that process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..bounded_dict import BoundedDict
from ..errors import QueryError
from . import allowed_functions, allowed_grammar
from .events_sql import DEAD, NAMES, TAIL
from .limits import SQL_BYTES_MAX

if TYPE_CHECKING:
    import duckdb

Scope = frozenset[str]
"""The names that the statement itself has defined around some part of it."""

_KEPT_MAX = 256
_CATALOGS = frozenset({"", "memory", "system"})
_SCHEMAS = frozenset({"", "main"})
# A name that nothing defines is looked up among DuckDB's own views, and as a file.
_NO_NAME = re.compile(
    r"^(duckdb_|pg_|pragma_|sqlite_|information_schema)|[./\\:*?\[\]]|^sealed_rows$"
)
TOLD_BY_NAME = frozenset(
    "current_catalog current_role current_schema current_user session_user user".split()
)
HIDDEN = [f'CREATE MACRO main."{name}"() AS NULL' for name in sorted(TOLD_BY_NAME)]
"""Names of a tenant's instance that stand before what DuckDB says of itself: a column of the same
name elsewhere in the statement does not bring that back."""
_PIVOT = re.compile(r"\s*(?:with\b.*)?(?:pivot|pivot_wider)\b", re.IGNORECASE | re.DOTALL)
_TABLES = frozenset({f"memory.{TAIL}", f"memory.{DEAD}"})


class SelectGuard:
    """Checks the statements of one DuckDB instance, and caches those that it has accepted."""

    def __init__(self, sql_bytes_max: int = SQL_BYTES_MAX) -> None:
        self._sql_bytes_max = sql_bytes_max
        self._parsed: BoundedDict[str, None] = BoundedDict(_KEPT_MAX)
        self._planned: BoundedDict[str, None] = BoundedDict(_KEPT_MAX)

    def check(self, connection: duckdb.DuckDBPyConnection, sql: str) -> None:
        """Raise QueryError unless the text is one SELECT of listed parts over the views."""
        if sql in self._parsed:
            return
        check_size(sql, self._sql_bytes_max)
        named: set[str] = set()
        told: set[str] = set()
        for node, scope in _nodes(_parsed(connection, sql), frozenset()):
            _check(node, scope)
            named.add(str(node.get("alias", "")).lower())
            if node.get("class") == "COLUMN_REF":
                told.update(_columns(node) & TOLD_BY_NAME)
        # Where nothing has such a name, DuckDB takes it for the function that tells of itself.
        for name in sorted(told - named):
            raise _refused(name)
        self._parsed[sql] = None

    def check_read(self, connection: duckdb.DuckDBPyConnection, sql: str) -> None:
        """Raise QueryError unless the text is one statement that reads; for the platform's own."""
        import duckdb

        if sql in self._parsed:
            return
        kinds = [one.type for one in connection.extract_statements(sql)]
        reading = duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN
        # DuckDB makes several statements of one PIVOT; what they leave behind is rolled back.
        is_pivot = kinds == [duckdb.StatementType.MULTI] and _PIVOT.match(sql)
        if not kinds:
            raise QueryError("there is no statement in this query")
        if not is_pivot and (len(kinds) > 1 or kinds[0] not in reading):
            raise QueryError(
                "a query is one SELECT statement, and changes nothing: to work with more, open a "
                "connection of your own with connect_duckdb(log)"
            )
        self._parsed[sql] = None

    def check_plan(self, connection: duckdb.DuckDBPyConnection, sql: str, params: object) -> None:
        """Raise QueryError where the plan of a checked statement does more than read and compute.

        DuckDB's own errors about the statement pass through.
        """
        if sql in self._planned:
            return
        rows = connection.execute(f"EXPLAIN (FORMAT json) {sql}", params).fetchall()
        stack: list[Any] = [json.loads(plan) for _, plan in rows]
        while stack:
            node = stack.pop()
            if isinstance(node, list):
                stack.extend(node)
            else:
                _check_operator(node)
                stack.extend(node.get("children", ()))
        self._planned[sql] = None


def check_size(sql: str, bytes_max: int) -> None:
    """Raise QueryError for a text that is too long, or cannot be parsed as text."""
    try:
        size = len(sql) if len(sql) > bytes_max else len(sql.encode())
    except UnicodeEncodeError:
        raise QueryError("a query is text that can be written as UTF-8") from None
    if size > bytes_max:
        raise QueryError(
            f"the text of this query is longer than {bytes_max} bytes: pass values as parameters, "
            "or raise sql_bytes_max in the platform's config"
        )


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> object:
    import duckdb

    try:
        statements = connection.extract_statements(sql)
        if [one.type for one in statements] != [duckdb.StatementType.SELECT]:
            raise QueryError("a tenant's query is one SELECT statement")
        (text,) = connection.execute(
            "SELECT json_serialize_sql(?, skip_null := true, skip_empty := true, "
            "skip_default := true)",
            [sql],
        ).fetchall()[0]
        tree = json.loads(text)
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise QueryError(str(error)) from None
    except RecursionError:
        raise QueryError("this query nests too deep to be checked: make it simpler") from None
    if tree["error"]:
        raise QueryError(f"this query cannot be checked: {tree['error_message']}")
    return tree["statements"]


def _nodes(tree: object, scope: Scope) -> Iterator[tuple[dict[str, object], Scope]]:
    """Yield every object of the tree with its scope; iterative, since queries nest deeply."""
    stack = [(tree, scope)]
    while stack:
        node, scope = stack.pop()
        if isinstance(node, list):
            stack.extend((one, scope) for one in node)
        elif isinstance(node, dict):
            if isinstance(ctes := node.get("cte_map"), dict):
                for entry in ctes.get("map", ()):
                    name = _defined(entry)
                    # Only a recursive one sees itself; each sees those before it.
                    inner = scope | {name} if _is_recursive(entry) else scope
                    stack.append((entry, inner))
                    scope = scope | {name}
            yield node, scope
            for field, value in node.items():
                if field == "function" and node.get("type") == "TABLE_FUNCTION":
                    # Its name is looked up among the table functions; the rest is an expression.
                    value = {**value, "function_name": ""} if isinstance(value, dict) else value
                if isinstance(value, dict | list) and field != "cte_map":
                    stack.append((value, scope))


def _defined(entry: dict[str, object]) -> str:
    name = str(entry["key"]).lower()
    if _NO_NAME.search(name):
        raise QueryError(f"{entry['key']!r} cannot be the name of a part of a tenant's query")
    return name


def _is_recursive(entry: dict[str, Any]) -> bool:
    return bool(entry["value"]["query_node"].get("type") == "RECURSIVE_CTE_NODE")


def _check(node: dict[str, Any], scope: Scope) -> None:
    kind, expression = node.get("type"), node.get("class")
    if expression is not None:
        _check_expression(node)
    elif isinstance(kind, str) and kind not in allowed_grammar.NODES:
        raise _refused(kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " "))
    elif kind == "TABLE_FUNCTION":
        _check_table_function(node)
    elif kind == "BASE_TABLE":
        _check_table(node, scope)
    elif kind == "SHOW_REF":
        if node.get("show_type") not in allowed_grammar.SHOWN or not node.get("query"):
            raise _refused(f"SHOW {node.get('table_name', '')}")
    for field, value in node.items():
        if value and field not in allowed_grammar.FIELDS:
            raise _refused(f"the clause {field}")


def _check_expression(node: dict[str, object]) -> None:
    if node["class"] not in allowed_grammar.EXPRESSIONS:
        raise _refused(f"the expression {node['class']}")
    if node.get("function_name"):
        _check_function(node)
    elif node["class"] == "TYPE" and not _is_named(node, "type_name", allowed_grammar.TYPES):
        raise _refused(f"the type {node.get('type_name')}")


def _columns(node: dict[str, Any]) -> set[str]:
    """Yield the names of columns that are named without their table."""
    names = node.get("column_names", ())
    return {str(names[0]).lower()} if len(names) == 1 else set()


def _refused(what: str) -> QueryError:
    return QueryError(f"{what} is not available to a tenant's query")


def _path(node: dict[str, Any]) -> list[str]:
    return [str(part).lower() for part in (node.get("qualified_name") or {}).get("path", ())]


def _is_named(node: dict[str, Any], field: str, names: frozenset[str]) -> bool:
    """Return whether the node names one of these, in no schema other than that of the views."""
    name, path = str(node.get(field, "")).lower(), _path(node)
    return (
        name in names
        and path[-1:] in ([], [name])
        and all(part in _CATALOGS | _SCHEMAS for part in path[:-1])
        and str(node.get("schema") or node.get("schema_name") or "").lower() in _SCHEMAS
        and str(node.get("catalog") or node.get("catalog_name") or "").lower() in _CATALOGS
    )


def _check_function(node: dict[str, object]) -> None:
    # What stands before the name may be a column: `payload.json_keys()`. A listed name is pure in
    # whichever schema it is found, since no tenant can make a function.
    name = str(node["function_name"]).lower()
    if name not in allowed_functions.EXPRESSIONS or _path(node)[-1:] not in ([], [name]):
        raise _refused(f"the function {node['function_name']}")


def _check_table_function(node: dict[str, object]) -> None:
    function = node.get("function")
    if not isinstance(function, dict) or not function.get("function_name"):
        raise _refused("this table function")
    if not _is_named(function, "function_name", allowed_functions.TABLE_FUNCTIONS):
        raise _refused(f"the table function {function['function_name']}")


def _check_table(node: dict[str, object], scope: Scope) -> None:
    name = str(node.get("table_name", ""))
    if not (_is_named(node, "table_name", frozenset(NAMES)) or _is_own(node, scope)):
        raise QueryError(f"there is no table {name}: the views are {', '.join(NAMES)}")


def _is_own(node: dict[str, object], scope: Scope) -> bool:
    """Return whether the statement defined this table: `t`, or `recurring.t` in a keyed
    recursion."""
    name, path = str(node.get("table_name", "")).lower(), _path(node)
    schema = str(node.get("schema_name", "")).lower()
    return (
        name in scope
        and not node.get("catalog_name")
        and schema in ("", "recurring")
        and path in ([], [name], [schema, name])
    )


def _check_operator(node: dict[str, Any]) -> None:
    name = str(node.get("name", "")).strip()
    if name in allowed_grammar.OPERATORS:
        return
    if name not in allowed_grammar.SCANS:
        raise _refused(f"the operation {name}")
    table = (node.get("extra_info") or {}).get("Table")
    if name == "SEQ_SCAN" and table not in _TABLES:
        raise _refused("a table that is no part of the views")
