"""Command line: look into a log beside whoever works on it, and steer tenants through a platform.

Looking (`sql`, `verify`, `tenants`, `ls`, `status`, `history`, `why`) reads the log's files alone:
it starts nothing, owns nothing and writes nothing. Steering goes through the platform at
`--address`, or the one that is at work on the log. `serve` answers HTTP beside a platform.
"""

from . import inspect, serve, steer
from .app import cli, main

__all__ = ["cli", "inspect", "main", "serve", "steer"]
