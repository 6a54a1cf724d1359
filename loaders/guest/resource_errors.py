"""Exhausted: errors by which the system says that a limit is reached, with the limit in their text.

An isolate that runs out of memory, files or room meets an error of Python's; what the instance's
log holds of it names the limit, its figure and the step.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping


def explained(
    error: BaseException, limits: Mapping[str, object], step: str | None = None
) -> BaseException:
    """The error, or one of its type that says which of the isolate's limits was exceeded.

    `limits`: `memory_mb`, `files_max` and `tmp_mb`, as far as they are known.
    """
    kind = type(error)
    if kind is MemoryError and not error.args and "memory_mb" in limits:
        return MemoryError(_text(f"memory limit of {limits['memory_mb']} MB", step))
    if kind is not OSError or not isinstance(error, OSError):
        return error
    # By the system's own word: not again when it passes through `run`.
    if error.strerror == os.strerror(error.errno or 0):
        if error.errno == errno.EMFILE and "files_max" in limits:
            return _os_error(error, _text(f"limit of {limits['files_max']} open files", step))
        if error.errno == errno.ENOSPC and limits.get("tmp_mb"):
            return _os_error(error, _text(f"limit of {limits['tmp_mb']} MB in /tmp", step))
    return error


def _text(limit: str, step: str | None) -> str:
    return f"{limit} exceeded" + ("" if step is None else f' in step "{step}"')


def _os_error(error: OSError, text: str) -> OSError:
    if error.filename is None:
        return OSError(error.errno, text)
    return OSError(error.errno, text, error.filename)
