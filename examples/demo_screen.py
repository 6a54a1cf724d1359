"""The demo's screen: events as they happen, over a table of instances; plain text in a pipe."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    import pyarrow

COLOURS = {
    "complete": "green",
    "errored": "red",
    "terminated": "red",
    "running": "yellow",
    "waiting": "cyan",
    "queued": "white",
}
ENDED = ("complete", "errored", "terminated")
# What is worth a line; the log holds the rest.
TOLD = {
    "workflow_queued": "created",
    "workflow_completed": "complete",
    "workflow_errored": "errored",
    "attempt_errored": "failed",
    "step_completed": "done",
    "sleep_started": "sleeps",
    "sleep_completed": "wakes",
    "wait_started": "waits",
    "wait_completed": "answered",
}


def cut(line: str, length: int) -> str:
    """At most this many letters."""
    return line if len(line) <= length else line[: length - 1] + "…"


def shortened(text: str, length: int) -> str:
    """At most this many letters, on one line."""
    return cut(" ".join(text.split()), length)


class Screen:
    """Where the story appears."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = 120
        self.owners: dict[str, int] = {}
        self.live: Live | None = None
        self.began = time.monotonic()

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=8, transient=True)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, line: str, style: str = "") -> None:
        """One line, with the seconds since the start."""
        text = Text(f"{time.monotonic() - self.began:5.1f} s  {line}", style)
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def alarm(self, line: str) -> None:
        """One line that must not be overlooked."""
        self.say(line, "bold white on red" if self.console.is_terminal else "")

    def event(self, row: dict[str, Any]) -> None:
        """One event, if it is worth a line; one line more where another owner goes on."""
        tenant, owner = row["tenant_id"], row["epoch"]
        if owner > self.owners.setdefault(tenant, owner):
            self.owners[tenant] = owner
            self.say(f"{tenant}: a new actor goes on, owner {owner} of the log", "bold magenta")
        if row["type"] not in TOLD:
            return
        name = f"{tenant}/{row['instance_id']}"
        what = [f"{name:29}", f"{TOLD[row['type']]:8}", row["step"] or ""]
        payload = json.loads(row["payload"] or "{}")
        if row["type"] == "attempt_errored":
            error = payload.get("error", {})
            what.append(f"· attempt {row['attempt']} · {error.get('name')}: {error.get('message')}")
        self.say(cut(" ".join(what), 110), COLOURS.get(TOLD[row["type"]], "dim"))

    def instances(self, rows: list[dict[str, Any]]) -> None:
        """The state of everything, drawn over the last one; a terminal only."""
        if self.live is None:
            return
        table = Table(
            "tenant", "instance", "status", "steps", Column("outcome", ratio=1), expand=True
        )
        # What is open comes first, since the terminal may be too low for all.
        open_first = sorted(rows, key=lambda row: row["status"] in ENDED)
        for row in open_first[: max(6, self.console.height - 8)]:
            outcome = row["output"] or ": ".join(
                part for part in (row["error_name"], row["error_message"]) if part
            )
            table.add_row(
                Text(row["tenant_id"]),
                Text(row["instance_id"]),
                Text(row["status"], COLOURS.get(row["status"], "")),
                str(row["steps"]),
                Text(shortened(outcome, 60)),
            )
        self.live.update(table)

    def table(self, title: str, result: pyarrow.Table) -> None:
        """The answer to a question in SQL."""
        self.console.print()
        self.console.print(Text(title, "bold"))
        table = Table()
        for name in result.column_names:
            table.add_column(name)
        for row in result.to_pylist():
            table.add_row(*(Text(shortened(str(value), 60)) for value in row.values()))
        self.console.print(table)
