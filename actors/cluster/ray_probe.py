"""Ray probe: whether a Ray answers at an address, asked before Ray's own client, which waits long.

One call of Ray's control service, with the token that Ray's client would show.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

import grpc

from dynamic_workflows.eventlog.errors import Unavailable

CONNECT_S = 4.0
ANSWER_S = 4.0
_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_TOKEN = (
    "in ~/.ray/auth_token or in the file that RAY_AUTH_TOKEN_PATH names, with RAY_AUTH_MODE=token"
)


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; raises Unavailable for what is no such thing."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Unavailable(
            f"{address!r} is no address of a Ray: give host:port of its head (port 6379 unless it"
            ' was started otherwise), or "auto" on a machine of the cluster'
        )
    return host.strip("[]"), int(port)


def probe(address: str, headers: Iterable[tuple[str, str]]) -> None:
    """Return when a Ray answers that takes these headers; raises Unavailable within 8 s."""
    host, port = split(address)
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise Unavailable(
            f"no Ray can be reached at {address} ({error.strerror or error}): start one there with"
            " `ray start --head`, or give the address of its head"
        ) from None
    headers = [(name.lower(), value) for name, value in headers]
    # A proxy that is meant for the web has no business here.
    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        channel.unary_unary(_CALL)(b"", timeout=ANSWER_S, metadata=headers)
    except grpc.RpcError as error:
        raise Unavailable(_explained(error, address, has_token=bool(headers))) from None
    finally:
        channel.close()


def _explained(error: grpc.RpcError, address: str, *, has_token: bool) -> str:
    code = error.code()
    if code is grpc.StatusCode.UNAUTHENTICATED and has_token:
        return (
            f"the Ray at {address} refused the token that this program has: give it the"
            f" cluster's, {_TOKEN}"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return (
            f"the Ray at {address} asks for a token, and this program has shown none: put the"
            f" cluster's {_TOKEN}"
        )
    what = "said nothing" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "is not Ray's head"
    return (
        f"what listens at {address} {what} (after {ANSWER_S:g} s at most: {code.name}): give the"
        " port of Ray's control service (6379 unless it was started otherwise), not of its"
        " dashboard or its client server"
    )
