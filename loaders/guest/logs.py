"""Logs: what tenant code prints, logs and fails with, as messages of a bounded rate."""

from __future__ import annotations

import builtins
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from time import monotonic_ns
from types import ModuleType
from typing import Any, TypeAlias

from dynamic_workflows.eventlog.token_bucket import TokenBucket

from ..protocol.messages import Log

LINES_PER_S = 1_000
LINE_BYTES_MAX = 8 * 1024
DROPPED = "dropped"
"""The level of a message that tells only how many lines were dropped."""
TOLD_S = 0.25
"""How long a count of dropped lines waits for a line to travel with."""
_FRAMES_MAX = 20
_OUR_FOLDER = os.path.dirname(os.path.dirname(__file__)) + os.sep

Place: TypeAlias = tuple[int, "str | None", int, bool]
"""(life, step, attempt, whether it is a replay)"""

Where = Callable[[], Place]
"""The place of the code that runs now."""

Later = Callable[[float, Callable[[], None]], None]
"""Calls back after some seconds."""


class Logs:
    """Turns lines into messages, and counts what it drops."""

    def __init__(self, send: Callable[[Log, int], None], where: Where, later: Later) -> None:
        self._send = send
        self.where = where
        self.later = later
        self.tells_replays = False
        """Whether anybody wants what was said before."""
        self._rate = TokenBucket(LINES_PER_S, burst=LINES_PER_S)
        self._dropped = 0
        self._dropped_in = 0
        """The life of the last line that was dropped."""
        self._is_telling = False

    def _drop(self) -> None:
        self._dropped += 1
        self._dropped_in = self.where()[0]
        if not self._is_telling:
            # The next line tells; if none comes, we have to.
            self._is_telling = True
            self.later(TOLD_S, self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._send(Log(DROPPED, "", dropped=dropped), self._dropped_in)

    def write(self, level: str, text: str, where: Place | None = None) -> None:
        """Send some lines, as far as the rate allows; `where` they come from if not from here."""
        life, step, attempt, is_replay = where or self.where()
        if is_replay and not self.tells_replays:
            return
        for line in text.splitlines() or [""]:
            if not self._rate.take(1, monotonic_ns() // 1000):
                self._drop()
                continue
            dropped, self._dropped = self._dropped, 0
            self._send(Log(level, _clip(line), step, attempt, dropped, is_replay), life)

    def error(self, error: BaseException) -> None:
        """Send an uncaught error with its trace through tenant code, as one message."""
        if not self._rate.take(1, monotonic_ns() // 1000):
            self._drop()
            return
        text = _trace(error)
        life, step, attempt, _ = self.where()
        dropped, self._dropped = self._dropped, 0
        self._send(Log("error", _clip(text.rstrip("\n")), step, attempt, dropped), life)

    def print(
        self,
        *values: Any,
        sep: str | None = None,
        end: str | None = None,
        file: Any = None,
        flush: bool = False,
    ) -> None:
        """The `print` of tenant modules."""
        if file is not None and file is not sys.stdout and file is not sys.stderr:
            builtins.print(*values, sep=sep, end=end, file=file, flush=flush)
            return
        text = io.StringIO()
        builtins.print(*values, sep=sep, end=end, file=text)
        written = text.getvalue()
        self.write("error" if file is sys.stderr else "info", written.removesuffix("\n"))

    def module(self) -> ModuleType:
        """A `logging` for a bundle that shares its process: what it logs goes here, and nothing
        else does."""
        root = logging.RootLogger(logging.INFO)
        manager = logging.Manager(root)
        root.manager = manager
        root.addHandler(_LogHandler(self))
        module = ModuleType("logging")
        module.__dict__.update(vars(logging))

        def get_logger(name: str | None = None) -> logging.Logger:
            return manager.getLogger(name) if name and name != root.name else root

        def basic_config(**options: object) -> None:
            """As where a handler is there already: nothing."""

        names = ("debug", "info", "warning", "warn", "error", "exception", "critical", "log")
        functions: dict[str, object] = {name: getattr(root, name) for name in names}
        module.__dict__.update(
            functions,
            root=root,
            getLogger=get_logger,
            basicConfig=basic_config,
            fatal=root.critical,
        )
        return module

    def capture(self) -> None:
        """Take over stdout, stderr and the root logger of this process."""
        sys.stdout = _Stream(self, "info")
        sys.stderr = _Stream(self, "error")
        root = logging.getLogger()
        root.addHandler(_LogHandler(self))
        root.setLevel(logging.INFO)


class _Stream(io.TextIOBase):
    """A text stream whose lines become messages."""

    def __init__(self, logs: Logs, level: str) -> None:
        self._logs = logs
        self._level = level
        self._begun = ""
        self._begun_at: Place | None = None
        self._is_waiting = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._logs.write(self._level, line)
        self._begun_at = self._logs.where() if self._begun else None
        if len(self._begun) > LINE_BYTES_MAX:
            self.flush()
        elif self._begun and not self._is_waiting:
            self._is_waiting = True
            self._logs.later(TOLD_S, self._give_up)
        return len(text)

    def _give_up(self) -> None:
        """The rest of a line that was begun does not come."""
        self._is_waiting = False
        self.flush()

    def flush(self) -> None:
        if self._begun:
            begun, self._begun = self._begun, ""
            self._logs.write(self._level, begun, self._begun_at)


class _LogHandler(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._logs.write(record.levelname.lower(), self.format(record))
        except Exception:
            self._logs.write("error", f"a log record of {record.name} cannot be formatted")


def _trace(error: BaseException) -> str:
    """The trace from where tenant code begins; what called it is of no use to the tenant."""
    try:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(error), error, trace, limit=-_FRAMES_MAX))
    except BaseException:  # Its class is the tenant's, and so is what reading it raises.
        return "(an error that cannot be shown)"


def _clip(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= LINE_BYTES_MAX:
        return data.decode("utf-8")
    return data[: LINE_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"
