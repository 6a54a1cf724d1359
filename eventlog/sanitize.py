"""Sanitize: text of a tenant as a terminal may show it."""

from __future__ import annotations

# Joiners belong to scripts and emoji; line breaks and tabs are what logs are made of.
_HARMLESS = "\n\t\u200c\u200d"


def printable(text: str, *, keep: str = "") -> str:
    """Return the text with all that is not plain and visible written out (`\\\\x1b`): controls,
    marks that change the direction of text, what is no character. `keep` stays as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def plain(text: str, characters_max: int | None = None) -> str:
    """Return text of several lines with terminal control characters written out; cut first if too
    long."""
    if characters_max is not None and len(text) > characters_max:
        text = text[: characters_max - 1] + "…"
    return printable(text, keep=_HARMLESS)
