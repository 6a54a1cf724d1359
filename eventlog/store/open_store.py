"""Opening a store: which of the back ends a path or URI names."""

from __future__ import annotations

from pathlib import Path

from .base import Store
from .local import LocalStore
from .locations import BUCKETS, root_of
from .memory import memory_store


def open_store(root: str | Path) -> Store:
    """Return the store at a path or URI: `file://`, `s3://`, `az://`, `gs://`, `memory://`.

    `memory://name` is one store per name and process; `memory://` is a new one each time. Object
    stores take credentials and endpoint from the environment, as their own tools do. Raises
    InvalidError for what is no place, Unavailable where a bucket's credentials are missing.
    """
    place = root_of(root)
    scheme = place.partition("://")[0] if "://" in place else ""
    if scheme == "memory":
        return memory_store(place)
    if scheme in BUCKETS:
        from .object import ObjectStore  # Not before there is a bucket: it loads much.

        return ObjectStore(place)
    return LocalStore(Path(place))
