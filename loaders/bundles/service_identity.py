"""Service identity: tells one granted service from another, alike in every process.

Code is stored under its content hash, and a caller that asks for that hash gets the services that
were stored with it. So two services that could answer differently must never count as one: beside
the class and the props, all that the object holds counts, and the code of a class that travels by
value.
"""

from __future__ import annotations

import copyreg
import hashlib
import pickle
import re

import cloudpickle

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import WorkflowsError

from ..sdk.service import Service

_HEX = re.compile(rb"[0-9a-f]{32}")


def identity_of(service: Service, data: bytes) -> str:
    """Return a text that is the same for two services only if their class and content are.

    `data` is the pickle of the service. What holds no mere values, and what says itself how it is
    pickled, is told apart by its pickle: then one and the same may get several identities.
    """
    kind = type(service)
    state = _state_of(service)
    shown = _digest(data) if state is None else state
    return f"{kind.__module__}:{kind.__qualname__}:{_digest(cloudpickle.dumps(kind))}:{shown}"


def _state_of(service: Service) -> str | None:
    """Return what the object holds, as codec text; None where that is not all of its state."""
    reduced: object = service.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    match reduced:
        case (copyreg.__newobj__, (kind,), state, *more) if kind is type(service) and not any(more):  # type: ignore[attr-defined]
            try:
                return values.encode(state).decode()
            except WorkflowsError:
                return None
    return None


def _digest(data: bytes) -> str:
    """Return the hash of a pickle, without the random names that a process gives to its classes."""
    given = getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
    stable = _HEX.sub(lambda found: b"" if found[0].decode() in given else found[0], data)
    return hashlib.sha256(stable).hexdigest()
