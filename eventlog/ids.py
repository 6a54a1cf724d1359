"""Ids: where every name and token comes from, so that one seed reproduces a world."""

from __future__ import annotations

import random
import secrets
import uuid
from typing import Protocol


class Ids(Protocol):
    """A source of unique names and tokens."""

    def uuid(self) -> str:
        """A random UUID, for instance ids."""
        ...

    def token(self) -> str:
        """32 hex digits, for owners and writes."""
        ...


class SystemIds:
    """Ids from the operating system's generator."""

    def uuid(self) -> str:
        """A random UUID, for instance ids."""
        return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))

    def token(self) -> str:
        """32 hex digits, for owners and writes."""
        return secrets.token_hex(16)


class SeededIds:
    """Ids that repeat for the same seed: tests and simulations."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def uuid(self) -> str:
        """A UUID drawn from the seed."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def token(self) -> str:
        """32 hex digits drawn from the seed."""
        return f"{self._random.getrandbits(128):032x}"
