"""Services: what a bundle grants, on the platform's side, one object per tenant and name."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from cachetools import LRUCache

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.loaders.bundles.bundle import Bundle, Granted, Grants
from dynamic_workflows.loaders.sdk import http
from dynamic_workflows.loaders.sdk.entrypoints import EgressDeniedError
from dynamic_workflows.loaders.sdk.service import Service

from ..code.callbacks import answer_of

_HELD_MAX = 1_024
"""Objects of one tenant, of all versions of its code."""


class ServiceCache:
    """The services of one tenant: one object for all isolates and versions that are granted it.

    So what a service remembers outlives the isolates that call it: no tenant gets round a limit
    that a service keeps by ending its isolate.
    """

    def __init__(self) -> None:
        self._held: LRUCache[tuple[str, str], Service] = LRUCache(_HELD_MAX)

    def held(self, place: str, granted: Granted) -> Service | None:
        """The object of that place, if there is one."""
        return self._held.get((place, granted.identity or ""))

    def at(self, place: str, granted: Granted) -> Service:
        """The object of that place; made when it is first asked for."""
        key = place, granted.identity or ""
        service = self._held.get(key)
        if service is None:
            service = self._held[key] = granted.revived()
        return service


class Services:
    """The granted services of one bundle, for one tenant; they serve concurrent calls."""

    def __init__(self, bundle: Bundle, live: Grants, revived: ServiceCache) -> None:
        """`live` is what serves instead of new objects, where it was made in this process."""
        self._bundle = bundle
        self._granted = bundle.services()
        self._live = live
        self._revived = revived

    def _at(self, place: str) -> Service | None:
        granted = self._granted.get(place)
        if granted is None:
            return None
        live = self._live.get(place)
        return self._revived.at(place, granted) if live is None else live

    def public_errors(self, target: str) -> tuple[type[BaseException], ...]:
        """What the service of that name, or the gateway (""), lets tenants read of its errors."""
        place = f"env:{target}" if target else "outbound"
        granted = self._granted.get(place)
        service = self._live.get(place)
        if service is None and granted is not None:
            service = self._revived.held(place, granted)
        public: Any = () if service is None else service.public_errors
        if not isinstance(public, tuple | list | set | frozenset):
            public = (public,)
        return tuple(kind for kind in public if isinstance(kind, type))

    async def call(self, name: str, method: str, args: bytes, kwargs: bytes) -> bytes:
        """Call a method of `env.<name>`; codec text in and out. Raises what the method raises."""
        service = self._at(f"env:{name}")
        if service is None:
            raise InvalidError(f"env has no service {name!r}")
        function = public_method(service, method)
        positional, named = _arguments(args, kwargs)
        _check_arguments(function, positional, named)
        answer = await answer_of(lambda: function(*positional, **named))
        return values.encode(http.to_plain(answer))

    async def fetch(self, args: bytes, kwargs: bytes) -> bytes:
        """Pass a tenant's request through the gateway; EgressDeniedError without one."""
        gateway = self._at("outbound")
        if gateway is None:
            raise EgressDeniedError(
                "this code has no network: the platform has to grant a global_outbound"
            )
        positional, _ = _arguments(args, kwargs)
        request = positional[0] if positional else None
        if not isinstance(request, http.Request):
            raise InvalidError("fetch takes one Request")
        fetch = _own_method(gateway, "fetch")
        answer = await answer_of(lambda: fetch(request))
        return values.encode(http.response_to_plain(answer))

    async def tail(self, records: list[dict[str, Any]]) -> None:
        """Hand log records to every tail, one after the other; raises what the last failure was."""
        failure: Exception | None = None
        for i in range(len(self._bundle.tails)):
            service = self._at(f"tail:{i}")
            if service is None:
                continue
            try:
                tail = _own_method(service, "tail")
                copies = [dict(record) for record in records]
                await answer_of(partial(tail, copies))
            except Exception as error:  # the others get it all the same
                failure = error
        if failure is not None:
            raise failure


def public_method(service: Service, method: str) -> Any:
    """The async method that a tenant may call; InvalidError for anything else.

    What is not async is the service's own: helpers that its methods share, and no tenant may ask.
    """
    is_public = not method.startswith("_") and not hasattr(Service, method)
    found = getattr(type(service), method, None) if is_public else None
    if not inspect.iscoroutinefunction(inspect.unwrap(found) if callable(found) else found):
        raise InvalidError(f"{type(service).__name__} has no public async method {method!r}")
    return getattr(service, method)


def _own_method(service: Service, method: str) -> Any:
    """The method that the platform itself calls; InvalidError where there is none."""
    function = getattr(service, method, None)
    if not callable(function):
        raise InvalidError(f"{type(service).__name__} has no method {method!r}")
    return function


class _ArgumentsError(TypeError):
    """The caller's mistake, in words about the method's parameters."""

    public_message = True


def _check_arguments(function: Any, positional: list[Any], named: dict[str, Any]) -> None:
    """Raises a TypeError that tenants may read where the method does not take these."""
    if hasattr(function, "__wrapped__"):
        return  # a decorator may take others than the method
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        parameters.bind(*positional, **named)
    except TypeError as error:
        raise _ArgumentsError(f"{function.__name__}(): {error}") from None


def _arguments(args: bytes, kwargs: bytes) -> tuple[list[Any], dict[str, Any]]:
    positional = values.decode(args)
    named = values.decode(kwargs) if kwargs else {}
    if not isinstance(positional, list | tuple) or not isinstance(named, dict):
        raise InvalidError("a call carries a list of arguments and a dict of named ones")
    if not all(isinstance(name, str) for name in named):
        raise InvalidError("the names of arguments are text")
    return (
        [http.from_plain(value) for value in positional],
        {name: http.from_plain(value) for name, value in named.items()},
    )
