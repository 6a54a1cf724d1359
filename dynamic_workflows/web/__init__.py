"""Web: a platform over HTTP, as an ASGI application."""

from .app import create_app
from .keys import Key, Keys

__all__ = ["Key", "Keys", "create_app"]
