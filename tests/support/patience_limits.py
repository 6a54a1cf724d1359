"""Limits of waiting that no machine is too slow for."""

from __future__ import annotations

SOON_S = 20
