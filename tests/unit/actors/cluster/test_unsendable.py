"""A `load` that cannot travel to the loader is refused in a sentence that names the culprit."""

from __future__ import annotations

import asyncio
import functools
import io
import multiprocessing
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import callback_pickling
from dynamic_workflows.eventlog.errors import InvalidError

SHARED = ContextVar[str]("SHARED")


class Holder:
    """What a program keeps, with a method for `load`."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def load(self, tenant_id: str) -> Any:
        return self.thing


class Slotted:
    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __call__(self, tenant_id: str) -> Any:
        return self.thing


class Stubborn:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("never")


def generator() -> Iterator[int]:
    yield 1


THINGS: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "rlock": threading.RLock,
    "condition": threading.Condition,
    "thread": lambda: threading.Thread(target=print),
    "local": threading.local,
    "file": lambda: tempfile.TemporaryFile("w+"),
    "binary": lambda: tempfile.TemporaryFile("rb+"),
    "raw": lambda: tempfile.TemporaryFile("rb+", buffering=0),
    "socket": socket.socket,
    "generator": generator,
    "database": lambda: sqlite3.connect(":memory:"),
    "context": lambda: SHARED,
    "mp lock": multiprocessing.Lock,
    "frame": lambda: __import__("sys")._getframe(),
    "stubborn": Stubborn,
    "nested": lambda: {"a": [threading.Lock()]},
}


@pytest.fixture(params=list(THINGS))
def thing(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = THINGS[request.param]()
    yield made
    if hasattr(made, "close"):
        made.close()


def refusal(load: Any) -> str:
    with pytest.raises(InvalidError) as caught:
        callback_pickling.dumps((load, None), is_elsewhere=False, name="load", subject=load)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("load cannot be sent to the loader's process: it ")
    assert "cannot be pickled" in text
    return text


def test_what_a_function_closes_over(thing: Any) -> None:
    def load(tenant_id: str) -> Any:
        return thing

    assert "thing" in refusal(load)


def test_what_a_lambda_a_default_and_a_partial_hold(thing: Any) -> None:
    assert "thing" in refusal(lambda tenant_id: thing)

    def defaulted(tenant_id: str, given: Any = thing) -> Any:
        return given

    assert "the default of the argument given" in refusal(defaulted)

    def loads(given: Any, tenant_id: str) -> Any:
        return given

    assert "the partial's args[0]" in refusal(functools.partial(loads, thing))
    assert "the partial's given" in refusal(functools.partial(loads, given=thing))


def test_what_the_object_of_a_method_and_a_callable_hold(thing: Any) -> None:
    assert "the object of the method load.thing" in refusal(Holder(thing).load)
    assert "thing" in refusal(Slotted(thing))


def test_the_innermost_part_is_named() -> None:
    registry = {"tenants": Holder([1, threading.Lock()])}

    def inner() -> Any:
        return registry

    def load(tenant_id: str) -> Any:
        return inner()

    text = refusal(load)
    assert "registry" in text or "tenants" in text
    assert "thing[1], a _thread.lock" in text


def test_what_goes_round_in_circles_is_still_named() -> None:
    circle: list[Any] = [threading.Lock()]
    circle.append(circle)

    def load(tenant_id: str) -> Any:
        return circle

    assert "circle[0]" in refusal(load)


def test_an_open_file_is_refused_and_text_in_memory_is_not(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("x = 1")
    text, data = io.StringIO("y"), io.BytesIO(b"z")
    with open(tmp_path / "code.py") as file:
        assert "_io.TextIOWrapper" in refusal(lambda tenant_id: file.read())
    assert callback_pickling.dumps(lambda tenant_id: (text, data), is_elsewhere=False)


@pytest.mark.parametrize("what", [threading.Lock, None])
async def test_connect_refuses_it_before_anything_starts(tmp_path: Path, what: Any) -> None:
    import ray

    held = asyncio.get_running_loop() if what is None else what()
    was_initialized, begun = ray.is_initialized(), time.monotonic()
    with pytest.raises(InvalidError, match=r"load cannot be sent .* variable held, an? \w+"):
        await dw.connect(tmp_path / "log", load=lambda tenant_id: held)
    assert ray.is_initialized() == was_initialized
    assert not (tmp_path / "log").exists()
    assert time.monotonic() - begun < 10


async def test_an_app_is_named_as_such(tmp_path: Path) -> None:
    lock = threading.Lock()

    class Dispatcher(dw.WorkerEntrypoint):
        async def fetch(self, request: Any) -> Any:
            return lock

    with pytest.raises(InvalidError, match="app cannot be sent .* variable lock, a _thread.lock"):
        await dw.connect(tmp_path / "log", app=dw.App(Dispatcher))
