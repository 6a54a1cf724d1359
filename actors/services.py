"""Services: what a bundle grants, on the platform's side, one object per tenant and name."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from ..eventlog import codec
from ..eventlog.errors import InvalidError
from ..loaders import http
from ..loaders.bundle import Bundle, Grants
from ..loaders.entrypoints import EgressDeniedError
from ..loaders.service import Service
from .callbacks import answer_of


class Services:
    """The granted services of one bundle, for one tenant; they serve concurrent calls."""

    def __init__(self, bundle: Bundle, live: Grants) -> None:
        self._bundle = bundle
        self._grants: Grants | None = live or None

    def _at(self, place: str) -> Service | None:
        if self._grants is None:
            self._grants = self._bundle.unpickle()
        return self._grants.get(place)

    async def call(self, name: str, method: str, args: bytes, kwargs: bytes) -> bytes:
        """Call a method of `env.<name>`; codec text in and out. Raises what the method raises."""
        service = self._at(f"env:{name}")
        if service is None:
            raise InvalidError(f"env has no service {name!r}")
        function = public_method(service, method)
        positional, named = _arguments(args, kwargs)
        answer = await answer_of(lambda: function(*positional, **named))
        return codec.encode(http.to_plain(answer))

    async def fetch(self, args: bytes, kwargs: bytes) -> bytes:
        """Pass a tenant's request through the gateway; EgressDeniedError without one."""
        gateway = self._at("outbound") if self._bundle.outbound is not None else None
        if gateway is None:
            raise EgressDeniedError(
                "this code has no network: the platform has to grant a global_outbound"
            )
        positional, _ = _arguments(args, kwargs)
        request = positional[0] if positional else None
        if not isinstance(request, http.Request):
            raise InvalidError("fetch takes one Request")
        fetch = public_method(gateway, "fetch")
        answer = await answer_of(lambda: fetch(request))
        return codec.encode(http.response_to_plain(answer))

    async def tail(self, records: list[dict[str, Any]]) -> None:
        """Hand log records to every tail, one after the other; raises what the last failure was."""
        failure: Exception | None = None
        for i in range(len(self._bundle.tails)):
            service = self._at(f"tail:{i}")
            if service is None:
                continue
            try:
                tail = public_method(service, "tail")
                copies = [dict(record) for record in records]
                await answer_of(partial(tail, copies))
            except Exception as error:  # the others get it all the same
                failure = error
        if failure is not None:
            raise failure


def public_method(service: Service, method: str) -> Any:
    """The method that a tenant may call; InvalidError for anything else."""
    is_public = not method.startswith("_") and not hasattr(Service, method)
    function = getattr(type(service), method, None) if is_public else None
    if not inspect.isfunction(function):
        raise InvalidError(f"{type(service).__name__} has no public method {method!r}")
    return getattr(service, method)


def _arguments(args: bytes, kwargs: bytes) -> tuple[list[Any], dict[str, Any]]:
    positional = codec.decode(args)
    named = codec.decode(kwargs) if kwargs else {}
    if not isinstance(positional, list | tuple) or not isinstance(named, dict):
        raise InvalidError("a call carries a list of arguments and a dict of named ones")
    if not all(isinstance(name, str) for name in named):
        raise InvalidError("the names of arguments are text")
    return [http.from_plain(value) for value in positional], named
