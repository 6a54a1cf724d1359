"""Plain: what an isolate says, as a terminal, a log and a driver may have it."""

from __future__ import annotations

import msgspec

from dynamic_workflows.eventlog.sanitize import plain as _plain

from ..protocol.messages import Error

TEXT_CHARACTERS_MAX = 16_384
_NAME_CHARACTERS_MAX = 256
_ARGS_BYTES_MAX = 64 * 1024


def plain(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """`eventlog.plain.plain`, with a limit that suits a line of a log."""
    return _plain(text, characters_max)


def plain_error(error: Error, characters_max: int) -> Error:
    """An error of a tenant as it may be raised in the driver: of bounded size, steering nothing.

    Its args go where they would bring back what its message must not hold.
    """
    return msgspec.structs.replace(
        error,
        name=plain(error.name, _NAME_CHARACTERS_MAX),
        message=plain(error.message, characters_max),
        args=error.args if _is_plain(error.args) else None,
    )


def _is_plain(args: bytes | None) -> bool:
    if args is None or len(args) > _ARGS_BYTES_MAX:
        return False
    try:
        # Controls below 0x20 stand in JSON as escapes; all others as they are.
        text = args.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and "\\u" not in text
