"""Signal handlers of the program survive a library that replaces them."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dynamic_workflows.actors.cluster.signal_handlers import SIGNALS, action_of, kept_handlers

IGNORE = ctypes.c_void_p(1)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The SIGTERMs that a handler of the program's own was told of."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def actions() -> list[bytes]:
    """The handlers of this process: the first field of what the system tells."""
    told = [action_of(getattr(signal, name)) for name in SIGNALS]
    return [action[:8] for action in told if action is not None]


def replaced_from_below() -> None:
    """As Ray does: without Python's notice, in a thread."""
    with kept_handlers():
        for name in SIGNALS:
            ctypes.CDLL(None).signal(getattr(signal, name), IGNORE)


def test_handlers_that_a_library_replaces_in_a_thread_are_put_back(heard: list[int]) -> None:
    before = actions()
    assert len(before) == len(SIGNALS)
    thread = threading.Thread(target=replaced_from_below)
    thread.start()
    thread.join()
    assert actions() == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_handler_that_the_program_sets_meanwhile_stays(heard: list[int]) -> None:
    later: list[int] = []
    with kept_handlers():
        signal.signal(signal.SIGTERM, lambda number, _frame: later.append(number))
    os.kill(os.getpid(), signal.SIGTERM)
    assert (heard, later) == ([], [signal.SIGTERM])
