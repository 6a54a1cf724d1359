"""Ray token: the secret that an embedded Ray asks of everybody who talks to it.

It lies in a file that only this user can read, before Ray starts. Ray learns the file's name from
the environment; the secret itself is in no environment and no command line.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

MODE = "RAY_AUTH_MODE"
PATH = "RAY_AUTH_TOKEN_PATH"
VALUE = "RAY_AUTH_TOKEN"


class RayToken:
    """A token of its own for one embedded Ray; the environment names it from `enter` to `leave`."""

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        """Make the token (its folder is closed to others already), or take what is there."""
        if is_new:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, secrets.token_hex(32).encode())
            finally:
                os.close(handle)
        self._ours = {MODE: "token", PATH: str(path), VALUE: None}
        self._before: dict[str, str | None] = {}

    def enter(self) -> None:
        """Have this process, and what it starts, show this token."""
        self._before = {name: os.environ.get(name) for name in self._ours}
        _set(self._ours)

    def leave(self) -> None:
        """Give the environment back as it was, but for what somebody else has set meanwhile."""
        _set(
            {
                name: value
                for name, value in self._before.items()
                if os.environ.get(name) == self._ours[name]
            }
        )
        self._before = {}


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
