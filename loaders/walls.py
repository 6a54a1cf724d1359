"""Walls: placeholder."""

from __future__ import annotations

import msgspec


class WallsPlan(msgspec.Struct, array_like=True):
    level: str = "sandbox"
    jail: str = "auto"
    threads: bool = False
    uid: int = 65534


class Walls:
    level = "unsafe-none"
    kept_fds: list[int] = []

    @classmethod
    def prepare(cls, plan: WallsPlan, *, readable: list[str]) -> Walls:
        return cls()

    def apply(self, *, memory_bytes: int, files_max: int, tmp_bytes: int) -> None:
        pass
