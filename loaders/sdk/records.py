"""Records: what the calls answer, for reading by attribute or by key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any


class Record:
    """A few named facts, read by attribute or by key."""

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def keys(self) -> Any:
        """The names, so that `dict(record)` works."""
        return self.__dict__.keys()

    def get(self, name: str, default: Any = None) -> Any:
        """The fact of that name, or the default."""
        return self.__dict__.get(name, default)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({facts})"


class ErrorInfo(Record):
    """An error as data: `name` is its class, `message` its text; no stack."""

    name: str
    message: str


class RollbackInfo(Record):
    """How the rollback went: `outcome` is "complete" or "failed", `error` an ErrorInfo or None."""

    outcome: str
    error: ErrorInfo | None


class Reason(Record):
    """Why an instance stands still: a stable `code` and a `message` for people."""

    code: str
    message: str


class Status(Record):
    """The status of an instance at one moment.

    `status` is queued, running, waiting, waitingForPause, paused, complete, errored or terminated.
    `output` and `error` are None unless the run ended so, `rollback` is None unless handlers ran,
    `reason` is None unless the platform holds the instance back (parked, or its code is missing).
    `isolation` names the walls around it while it is in an isolate, else it is None.
    """

    status: str
    output: Any
    error: ErrorInfo | None
    rollback: RollbackInfo | None
    reason: Reason | None
    isolation: str | None


class Event(Record):
    """One row of an instance's history; `seq` grows and is the cursor of `subscribe`."""

    seq: int
    ts: datetime
    type: str
    step: str | None
    count: int
    attempt: int
    payload: Any
    run: int
    epoch: int


class Summary(Record):
    """One instance in a page of `list`."""

    id: str
    workflow: str
    status: str
    created_at: datetime
    ended_at: datetime | None


class Page:
    """Some instances, newest first; `cursor` asks for the next page and is None at the end."""

    def __init__(self, items: list[Summary], cursor: str | None) -> None:
        self.items = items
        self.cursor = cursor

    def __iter__(self) -> Iterator[Summary]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Summary:
        return self.items[index]

    def __repr__(self) -> str:
        return f"Page({self.items!r}, cursor={self.cursor!r})"


class DeleteError(Record):
    """Why one instance of a batch was not deleted."""

    id: str
    code: str
    message: str


class DeleteResult(Record):
    """What `delete_batch` did: `deleted` ids, and `errors` with `id`, `code`, `message`."""

    deleted: list[str]
    errors: list[DeleteError]


class Why(Record):
    """Why an instance does not go on, or that it does: a stable `code` and a sentence, `text`."""

    code: str
    text: str

    def __str__(self) -> str:
        return self.text
