"""Pickles: functions of the driver on their way to the loader actor.

A function travels by name where the other process can import its module, and by value where it
cannot: from `__main__`, from a test that pytest imported by path, and to another machine from
everything that is not installed.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cloudpickle

from dynamic_workflows.eventlog.errors import InvalidError

from . import pickle_diagnosis

_INSTALLED = tuple(
    Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "purelib", "platlib")
)
_INSTALLED_ANYWHERE = {"site-packages", "dist-packages"}
"""So the folders are called that users and systems install into, beside those of this Python."""


def dumps(
    value: object, *, is_elsewhere: bool, name: str = "the callback", subject: object = None
) -> bytes:
    """The value as bytes; `is_elsewhere`: for a machine that has only what is installed here.

    Raises InvalidError, which names the part that cannot travel. `name`: what its owner calls the
    value, or the `subject` in it.
    """
    with _by_value(module for module in _modules() if _needs_value(module, is_elsewhere)):
        try:
            return pickle_diagnosis.dumps(value)
        except Exception as error:  # whatever a user's __reduce__ raises
            raise InvalidError(pickle_diagnosis.explain(subject or value, name, error)) from None


def _modules() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name != "__main__" and isinstance(getattr(module, "__file__", None), str)
    ]


def _needs_value(module: ModuleType, is_elsewhere: bool) -> bool:
    path = Path(str(module.__file__)).resolve()
    if any(path.is_relative_to(place) for place in _INSTALLED):
        return False
    if not _INSTALLED_ANYWHERE.isdisjoint(path.parts):
        return False
    if module.__name__.partition(".")[0] == __name__.partition(".")[0]:
        return False
    return is_elsewhere or not _can_be_found(module, path)


def _can_be_found(module: ModuleType, path: Path) -> bool:
    """Whether an import by name finds this file in an actor on the same machine.

    Ray gives its workers the driver's working directory and the folder of the driver's script, and
    nothing else of sys.path.
    """
    relative = Path(*module.__name__.split("."))
    names = (relative.with_suffix(".py"), relative / "__init__.py")
    script = Path(sys.argv[0] or ".").resolve().parent
    places = [Path.cwd(), *([script] if str(script) in sys.path else [])]
    return any((place / name).resolve() == path for place in places for name in names)


@contextmanager
def _by_value(modules: Iterator[ModuleType]) -> Iterator[None]:
    registered: dict[str, ModuleType] = {}  # some modules are found under several names
    for module in modules:
        try:
            cloudpickle.register_pickle_by_value(module)
        except ValueError:
            continue  # not importable under its own name: by value anyhow
        registered[module.__name__] = module
    try:
        yield
    finally:
        for module in registered.values():
            cloudpickle.unregister_pickle_by_value(module)
