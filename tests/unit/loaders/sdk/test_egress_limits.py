"""However a server answers, a request through the ready-made gateway has an end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import dynamic_workflows as dw

Serve = Callable[[socket.socket, threading.Event], None]


@contextmanager
def server(serve: Serve) -> Iterator[str]:
    """Serves each connection in this way, until the test is over."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def one(sock: socket.socket) -> None:
        with sock:
            try:
                serve(sock, over)
            except OSError:
                pass  # the other side has hung up

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(sock,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def dripping(begin: bytes, drip: bytes) -> Serve:
    """Says this, and then a little more again and again."""

    def serve(sock: socket.socket, over: threading.Event) -> None:
        sock.recv(65536)
        sock.sendall(begin)
        while not over.wait(0.02):
            sock.sendall(drip)

    return serve


def silent(sock: socket.socket, over: threading.Event) -> None:
    over.wait()


def saying(answer: bytes) -> Serve:
    def serve(sock: socket.socket, over: threading.Event) -> None:
        sock.recv(65536)
        sock.sendall(answer)

    return serve


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x"),
    ],
    ids=["body", "header", "continue", "chunks", "until it closes"],
)
async def test_a_server_that_drips_is_given_up(begin: bytes, drip: bytes) -> None:
    with server(dripping(begin, drip)) as host:
        gateway = dw.AllowList(host, timeout_seconds=60, request_seconds=0.3)
        with pytest.raises(TimeoutError, match=r"127.0.0.1:\d+ took more than 0.3 s"):
            await gateway.fetch(dw.Request("GET", host))


async def test_a_server_that_is_silent_is_told_apart_from_one_that_is_slow() -> None:
    with server(silent) as host:
        gateway = dw.AllowList(host, timeout_seconds=0.2, request_seconds=60)
        with pytest.raises(TimeoutError, match="did not answer in 0.2 s"):
            await gateway.fetch(dw.Request("GET", host))


async def test_a_server_that_does_not_read_is_given_up() -> None:
    with server(silent) as host:
        gateway = dw.AllowList(
            host, timeout_seconds=60, request_seconds=0.3, body_bytes_max=64 << 20
        )
        with pytest.raises(TimeoutError, match=r"took more than 0.3 s"):
            await gateway.fetch(dw.Request("POST", host, body=b"x" * (32 << 20)))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["length", "close", "old", "continue"],
)
async def test_whole_answers_come_whole(answer: bytes) -> None:
    with server(saying(answer)) as host:
        response = await dw.AllowList(host).fetch(dw.Request("GET", host))
        assert (response.status, await response.text()) == (200, "ok")


async def test_waiting_for_a_turn_counts() -> None:
    with server(silent) as host:
        gateway = dw.AllowList(host, timeout_seconds=60, request_seconds=0.3, at_once_max=1)
        errors = await asyncio.gather(
            *(gateway.fetch(dw.Request("GET", host)) for _ in range(2)), return_exceptions=True
        )
        assert all("took more than 0.3 s" in str(error) for error in errors)
