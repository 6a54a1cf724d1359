"""A small kit for text."""

from .slug import slug
from .wrap import wrap

__all__ = ["slug", "wrap"]
