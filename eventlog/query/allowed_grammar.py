"""SQL grammar: the parts of a parsed and of a planned SELECT that a tenant's query may have.

As DuckDB names them in `json_serialize_sql` and in `EXPLAIN (FORMAT json)`. What is not listed is
refused, so a statement, a clause or an operator that a new version of DuckDB brings is refused
until it is listed here.
"""

from __future__ import annotations

NODES = frozenset(
    """
    SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE
    BASE_TABLE EMPTY EXPRESSION_LIST JOIN PIVOT SHOW_REF SUBQUERY TABLE_FUNCTION
    DISTINCT_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER ORDER_MODIFIER
    ASCENDING DESCENDING ORDER_DEFAULT
    """.split()
)
"""Queries, tables and what orders or cuts them, by their `type`."""

EXPRESSIONS = frozenset(
    """
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA LAMBDA_REF
    OPERATOR PARAMETER POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW
    """.split()
)
"""Expressions, by their `class`."""

SHOWN = frozenset({"DESCRIBE", "SUMMARY"})
"""What may be shown about a query; the other kinds show what the database holds."""

FIELDS = frozenset(
    """
    aggregate_handling aggregates alias aliases arg_orders arguments case_checks catalog
    catalog_name child children class collation column column_name_alias column_names columns
    comparison_type condition cte_map cte_name default_expr distinct distinct_on_targets else_expr
    end end_expr entries exclude_clause exclude_list expr expression filter filter_expr from_table
    function function_name group_expressions group_sets groups has_ignore_nulls having id identifier
    ignore_nulls include_nulls index input is_implicit is_legacy_function_call is_null is_operator
    is_percentage join_type key key_targets kind left lhs limit limit_type literal lower map
    materialized method modifiers name named_param_map nearest_count nearest_order_type node
    null_order offset offset_expr order_bys orders partitions path pivot_expressions pivots
    payload_aggregates qualified_exclude_list qualified_name qualify query query_location
    query_location_length query_node ref_type relation_name rename_list repeatable replace_list
    right sample sample_rate sample_size schema schema_name seed select_list setop_all setop_type
    show_type source star_expr start start_expr subquery subquery_type syntax_type table table_name
    text then_expr try_cast type type_expr type_info type_name union_all unpivot_names upper
    using_columns value values when_expr where_clause with_ordinality
    """.split()
)
"""What a node may say about itself; anything else is refused unless it says nothing."""

TYPES = frozenset(
    """
    any array bigint bignum binary bit bitstring blob bool boolean bpchar bytea char date datetime
    dec decimal double enum float float4 float8 guid hugeint int int1 int128 int16 int2 int32 int4
    int64 int8 integer integral interval json list logical long map null numeric nvarchar oid real
    row short signed smallint string struct text time timestamp timestamp_ms timestamp_ns
    timestamp_s timestamp_us timestamptz timetz time_ns tinyint tuple ubigint uhugeint uint128
    uint16 uint32 uint64 uint8 uinteger union usmallint utinyint uuid varbinary varchar variant
    varint
    """.split()
) | {"time with time zone", "timestamp with time zone"}
"""What a value may be cast to."""

OPERATORS = frozenset(
    """
    ASOF_JOIN BLOCKWISE_NL_JOIN COLUMN_DATA_SCAN CROSS_PRODUCT CTE CTE_SCAN DELIM_SCAN DUMMY_SCAN
    EMPTY_RESULT EXPRESSION_SCAN FILTER HASH_GROUP_BY HASH_JOIN IE_JOIN INOUT_FUNCTION
    LEFT_DELIM_JOIN LIMIT LIMITED_DISTINCT LIMIT_PERCENT NESTED_LOOP_JOIN ORDER_BY
    PARTITIONED_AGGREGATE PERFECT_HASH_GROUP_BY PIECEWISE_MERGE_JOIN PIVOT POSITIONAL_JOIN
    POSITIONAL_SCAN PROJECTION RECURSIVE_CTE RECURSIVE_CTE_SCAN RECURSIVE_KEY_CTE RECURSIVE_KEY_JOIN
    RECURSIVE_PARTIAL_KEY_JOIN RECURSIVE_RECURRING_CTE_SCAN REC_CTE REC_CTE_SCAN REC_KEY_CTE
    REC_REC_CTE_SCAN RESERVOIR_SAMPLE RIGHT_DELIM_JOIN SAMPLE STREAMING_LIMIT STREAMING_SAMPLE
    STREAMING_WINDOW TOP_N UNGROUPED_AGGREGATE UNION UNNEST WINDOW
    """.split()
)
"""What a plan may do with rows."""

SCANS = frozenset(
    """
    ARROW_SCAN GENERATE_SERIES JSON_EACH JSON_TREE PYTHON_ARROW_SCAN RANGE READ_PARQUET SEQ_SCAN
    """.split()
)
"""Where a plan's rows may come from."""
