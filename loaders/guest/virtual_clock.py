"""Stand-ins: `datetime` and `time` as a bundle sees them where time is virtual, in tests.

A bundle's modules import these in the place of the real ones; nobody else does. What they make are
instances of the real classes. `datetime` and `date` themselves are classes that only know another
present: they are equal to the real ones, and so are they for isinstance, issubclass and Pydantic.
"""

from __future__ import annotations

import copyreg
import datetime as real_datetime
import time as real_time
from collections.abc import Callable
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

_EPOCH = real_datetime.datetime.fromtimestamp(0, real_datetime.UTC)


def stand_ins(now_us: Callable[[], int]) -> dict[str, ModuleType]:
    """The modules by name; `now_us` tells the time in microseconds since 1970."""
    return {"datetime": _datetime_module(now_us), "time": _time_module(now_us)}


class _Present(type):
    """The class of a class that stands for a real one, and of what is derived from it."""

    _real: type
    _stand_in: type | None = None

    def __instancecheck__(cls, instance: object) -> bool:
        if cls is cls._stand_in:
            return isinstance(instance, cls._real)
        return type.__instancecheck__(cls, instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        if cls is cls._stand_in:
            return issubclass(subclass, cls._real)
        return type.__subclasscheck__(cls, subclass)

    def __eq__(cls, other: object) -> bool:
        return other is cls or (cls is cls._stand_in and other is cls._real)

    def __hash__(cls) -> int:
        return hash(cls._real) if cls is cls._stand_in else type.__hash__(cls)

    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler(cls._real)


def _reduce(cls: _Present) -> Any:
    # Under the name of a stand-in pickle would find another object: the real one, which is meant.
    # Bundles may import pkgutil.
    is_stand_in = cls is cls._stand_in
    return (resolve_name, (f"datetime:{cls.__name__}",)) if is_stand_in else cls.__qualname__


copyreg.pickle(_Present, _reduce)


def _datetime_module(now_us: Callable[[], int]) -> ModuleType:
    def now_in(tz: real_datetime.tzinfo | None) -> real_datetime.datetime:
        present = _EPOCH + real_datetime.timedelta(microseconds=now_us())
        if tz is not None:
            return present.astimezone(tz)
        return present.astimezone().replace(tzinfo=None)

    class VirtualDate(real_datetime.date, metaclass=_Present):
        _real = real_datetime.date

        def __new__(cls, *args: Any, **named: Any) -> Any:
            kind = real_datetime.date if cls is VirtualDate else cls
            return real_datetime.date.__new__(kind, *args, **named)

        @classmethod
        def today(cls) -> Any:
            present = now_in(None)
            return cls(present.year, present.month, present.day)

    class VirtualDatetime(real_datetime.datetime, metaclass=_Present):
        _real = real_datetime.datetime

        def __new__(cls, *args: Any, **named: Any) -> Any:
            kind = real_datetime.datetime if cls is VirtualDatetime else cls
            return real_datetime.datetime.__new__(kind, *args, **named)

        @classmethod
        def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
            present = now_in(tz)
            return cls.combine(present.date(), present.timetz())

        @classmethod
        def today(cls) -> Any:
            return cls.now()

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(real_datetime.UTC).replace(tzinfo=None)

    module = ModuleType("datetime")
    module.__dict__.update(vars(real_datetime))
    for stand_in, name in ((VirtualDate, "date"), (VirtualDatetime, "datetime")):
        stand_in._stand_in = stand_in
        stand_in.__name__ = stand_in.__qualname__ = name
        stand_in.__module__ = "datetime"
        setattr(module, name, stand_in)
    return module


def _time_module(now_us: Callable[[], int]) -> ModuleType:
    since_us = now_us()
    since_ns = real_time.monotonic_ns()

    def monotonic_ns() -> int:
        return since_ns + (now_us() - since_us) * 1000

    def localtime(seconds: float | None = None) -> real_time.struct_time:
        return real_time.localtime(now_us() / 1e6 if seconds is None else seconds)

    def gmtime(seconds: float | None = None) -> real_time.struct_time:
        return real_time.gmtime(now_us() / 1e6 if seconds is None else seconds)

    def ctime(seconds: float | None = None) -> str:
        return real_time.asctime(localtime(seconds))

    def asctime(when: Any = None) -> str:
        return real_time.asctime(localtime() if when is None else when)

    def strftime(format: str, when: Any = None) -> str:
        return real_time.strftime(format, localtime() if when is None else when)

    module = ModuleType("time")
    module.__dict__.update(vars(real_time))
    module.__dict__.update(
        time=lambda: now_us() / 1e6,
        time_ns=lambda: now_us() * 1000,
        monotonic=lambda: monotonic_ns() / 1e9,
        monotonic_ns=monotonic_ns,
        localtime=localtime,
        gmtime=gmtime,
        ctime=ctime,
        asctime=asctime,
        strftime=strftime,
    )
    return module
