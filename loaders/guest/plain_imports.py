"""Plain names: modules of a bundle, asked for by code that is none of the bundle's.

`importlib.import_module("handlers.card")` is carried out by the standard library, which knows of no
bundle. Where a bundle is alone in its process, its finder answers for its plain names. Where
several share one, as in tests of workflows, it is the innermost frame of a bundle's code that says
whose module is meant; and no plain name stays in `sys.modules`, where the next bundle would find
it.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from contextvars import Context
from types import FrameType, ModuleType
from typing import Protocol


class LentModules(Protocol):
    """The modules of a bundle that shares its process with others."""

    prefix: str
    """What the private names of its modules begin with."""

    def lends(self, name: str) -> bool:
        """Whether a library may import a module of the bundle by this plain name."""
        ...

    def get(self, name: str) -> ModuleType:
        """The module of this plain name; imports it if need be."""
        ...


_FRAMES_MAX = 100
_real = importlib.import_module
_open: dict[str, LentModules] = {}
"""The bundles that share this process, by prefix."""
_lent: set[str] = set()
_borrower: LentModules | None = None


def share(modules: LentModules) -> None:
    """A bundle that is not alone has come: its code may import its modules by plain names."""
    if not _open:
        importlib.import_module = _import_module
    _open[modules.prefix] = modules


def leave(modules: LentModules) -> None:
    """It has gone."""
    if _open.pop(modules.prefix, None) is not None:
        _take_back()
        if not _open and importlib.import_module is _import_module:
            importlib.import_module = _real


def asking() -> LentModules | None:
    """The bundle whose code is at work now, if one is."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES_MAX):
        if frame is None:
            return None
        found = _open.get(frame.f_code.co_filename.partition("/")[0])
        if found is not None:
            return found
        frame = frame.f_back
    return None


def lend(name: str, modules: LentModules) -> bool:
    """Whether a library that asks for a plain name means this bundle; its answer is short-lived."""
    global _borrower
    if asking() is not modules:
        return False
    take_back_from_others(modules)
    if not _lent:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            pass  # It is taken back before another bundle imports, or when this one goes.
        else:
            loop.call_soon(_take_back, context=Context())
    _borrower = modules
    _lent.add(name)
    return True


def take_back_from_others(modules: LentModules) -> None:
    """This bundle imports: no plain name of another one may be in its way."""
    if _lent and _borrower is not modules:
        _take_back()


def _take_back() -> None:
    while _lent:
        sys.modules.pop(_lent.pop(), None)


def _import_module(name: str, package: str | None = None) -> ModuleType:
    """`importlib.import_module`, which knows whose modules are meant."""
    modules = asking() if not name.startswith(".") else None
    if modules is not None and modules.lends(name):
        return modules.get(name)
    return _real(name, package)
