"""Segments: sealed Parquet files, their merging, and large values beside them."""
