"""A Ray that is not there, or does not let one in, is named in one sentence within ten seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import ray_probe
from dynamic_workflows.eventlog.errors import Unavailable


@contextmanager
def listener(serve: Callable[[socket.socket], Any]) -> Iterator[str]:
    """A port that does with each connection what it is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                kept.append(client)
                serve(client)

        kept: list[socket.socket] = []
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in kept:
                client.close()


@contextmanager
def control_service(token: str | None) -> Iterator[str]:
    """What asks for a token as Ray does."""

    def answer(request: bytes, context: Any) -> bytes:
        shown = dict(context.invocation_metadata()).get("authorization")
        if token is not None and shown != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    handler = grpc.method_handlers_generic_handler(
        "ray.rpc.NodeInfoGcsService", {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def refusal(address: str, *headers: tuple[str, str]) -> str:
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        ray_probe.probe(address, headers)
    assert time.monotonic() - begun < 10
    assert caught.value.code == "platform.unavailable"
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_port_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    assert f"no Ray can be reached at {address} (Connection refused)" in refusal(address)


def test_a_host_that_does_not_exist() -> None:
    assert "no Ray can be reached at" in refusal("no-such-host.invalid:6379")


@pytest.mark.parametrize(
    ("serve", "text"),
    [
        (lambda client: None, "said nothing"),
        (lambda client: client.close(), "is not Ray's head"),
        (lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "is not Ray's head"),
        (lambda client: client.sendall(b"SSH-2.0-OpenSSH_9.9\r\n"), "is not Ray's head"),
    ],
    ids=["silence", "hanging up", "a web server", "another protocol"],
)
def test_a_port_of_something_else(serve: Callable[[socket.socket], Any], text: str) -> None:
    with listener(serve) as address:
        told = refusal(address)
    assert f"what listens at {address}" in told
    assert "6379" in told
    assert text in told or "said nothing" in told


def test_a_token_that_is_missing_or_wrong() -> None:
    with control_service("right") as address:
        assert "asks for a token, and this program has shown none" in refusal(address)
        wrong = refusal(address, ("Authorization", "Bearer wrong"))
        assert "refused the token" in wrong
        assert "RAY_AUTH_TOKEN_PATH" in wrong
        ray_probe.probe(address, [("Authorization", "Bearer right")])


def test_a_cluster_without_tokens_is_taken_as_it_is() -> None:
    with control_service(None) as address:
        ray_probe.probe(address, [])


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:0", "head:99999"])
def test_what_is_no_address_is_said_so(address: str) -> None:
    with pytest.raises(Unavailable, match="is no address of a Ray"):
        ray_probe.split(address)


def test_an_address_of_version_6_is_taken_apart() -> None:
    assert ray_probe.split("[::1]:6379") == ("::1", 6379)


async def test_connect_says_it_at_once(tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="no Ray can be reached at"):
        await dw.connect(tmp_path, address=address)
    assert time.monotonic() - begun < 10
