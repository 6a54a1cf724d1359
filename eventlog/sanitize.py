"""Sanitize: text of a tenant as a terminal may show it."""

from __future__ import annotations

# Joiners belong to scripts and emoji; line breaks and tabs are what logs are made of.
_HARMLESS = frozenset("\n\t\u200c\u200d")


def plain(text: str, characters_max: int | None = None) -> str:
    """Return the text with terminal control characters written out (`\\\\x1b`); cut first if too
    long."""
    if characters_max is not None and len(text) > characters_max:
        text = text[: characters_max - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _HARMLESS else ascii(c)[1:-1] for c in text)
