"""Queries: SQL over segments and tails with DuckDB."""
