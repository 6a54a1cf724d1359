"""Slugs: titles as they may stand in an address."""

import re
import unicodedata


def slug(title: str) -> str:
    """The title in lower case ASCII letters and digits, words joined by hyphens."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[a-z0-9]+", plain.lower()))
