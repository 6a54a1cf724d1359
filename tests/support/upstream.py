"""A server that tenants may or may not reach."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Upstream(BaseHTTPRequestHandler):
    """Answers with what it was asked, and keeps it."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]]

    def _answer(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size)
        self.seen.append(
            {"line": self.requestline, "headers": dict(self.headers.items()), "body": body}
        )
        status = 302 if self.path == "/moved" else 200
        answer = b"x" * int(self.path[6:]) if self.path.startswith("/size/") else b'{"ok": true}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 302:
            self.send_header("Location", "http://elsewhere.example/")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A server on this machine, and what it was asked."""

    def __init__(self, port: int, seen: list[dict[str, Any]]) -> None:
        self.host = f"http://localhost:{port}"
        self.port = port
        self.seen = seen


@contextmanager
def upstream() -> Iterator[Server]:
    handler = type("Handler", (Upstream,), {"seen": []})
    server = ThreadingHTTPServer(("localhost", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Server(server.server_address[1], handler.seen)  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
