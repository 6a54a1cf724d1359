"""Units: the number of bytes in one."""

from __future__ import annotations

MIB = 1024 * 1024
"""Bytes in a mebibyte."""
