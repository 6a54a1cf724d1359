"""Gateway: AllowList, a ready-made way out for tenant code: to named hosts, and nowhere else.

It runs on the platform's side. A request to a host that is named is sent as it is, with the headers
that the platform adds and the tenant never sees; redirects are answers, and are not followed.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dynamic_workflows.eventlog.units import MIB

from . import http as messages
from . import ip_ranges
from .entrypoints import EgressDeniedError
from .request_deadline import DeadlineSocket, RequestDeadline
from .service import Service

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")
# What belongs to one connection is ours to say: the tenant's idea of it could split requests.
_OURS = frozenset(
    """
    connection content-length expect host keep-alive proxy-authenticate proxy-authorization
    proxy-connection te trailer transfer-encoding upgrade
    """.split()
)


@dataclass(frozen=True)
class Origin:
    """Where a request goes to, or a pattern of such places."""

    scheme: str
    host: str
    port: int

    def covers(self, other: Origin) -> bool:
        """Whether this pattern allows that place."""
        if (self.scheme, self.port) != (other.scheme, other.port):
            return False
        if self.is_wild:
            return other.host.endswith(self.host[1:])
        return self.host == other.host

    @property
    def is_wild(self) -> bool:
        """Whether it stands for every host below a domain."""
        return self.host.startswith("*")

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{port}"


class AllowList(Service):
    """A gateway (`global_outbound`) to some hosts: everything else is EgressDeniedError.

    A host is `api.example.com`, `*.example.com` (every host below it, and not itself), or either
    with a scheme and a port: `http://localhost:8080`. Without a scheme only https will do. What is
    said for a host goes before what is said for a `*`, and a longer `*` before a shorter one. Hosts
    that only a `*` covers must not resolve to private addresses, and no host to the address where a
    cloud tells a machine's secrets, unless that address, or the cloud's name for it, is named.
    """

    def __init__(
        self,
        *hosts: str,
        methods: Sequence[str] = METHODS,
        headers: Mapping[str, Mapping[str, str]] | None = None,
        timeout_seconds: float = 30.0,
        request_seconds: float = 120.0,
        body_bytes_max: int = 16 * MIB,
        at_once_max: int = 16,
    ) -> None:
        """`headers`: by one of `hosts`, what is added to (or replaces of) each request to it.

        `timeout_seconds` is for connecting and for each wait for bytes, `request_seconds` for a
        whole request, its wait for a turn included; `body_bytes_max` holds for requests and
        answers; more than `at_once_max` requests of a tenant wait for their turn.
        """
        unknown = set(headers or {}) - set(hosts)
        if unknown:
            raise ValueError(f"headers are for hosts that are not allowed: {sorted(unknown)}")
        super().__init__(
            props={
                "hosts": list(hosts),
                "methods": [method.upper() for method in methods],
                "headers": {host: dict(added) for host, added in (headers or {}).items()},
                "timeout_seconds": timeout_seconds,
                "request_seconds": request_seconds,
                "body_bytes_max": body_bytes_max,
                "at_once_max": at_once_max,
            }
        )
        self._read()

    def _read(self) -> None:
        self._added: dict[Origin, dict[str, str]] = {}
        for host in self.props["hosts"]:
            # One place may be named in several ways, and each may come with headers.
            added = self._added.setdefault(_pattern(host), {})
            added |= _headers(host, self.props["headers"].get(host, {}))
        self._patterns = sorted(self._added, key=lambda one: (one.is_wild, -len(one.host)))
        self._threads: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"props": self.props}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read()

    def __repr__(self) -> str:
        return f"AllowList({', '.join(map(str, self._added))})"  # and no header: they are secret

    async def fetch(self, request: messages.Request) -> messages.Response:
        """Send the request; raises EgressDeniedError, ConnectionError or TimeoutError."""
        url, place, pattern = self._allowed(request)
        body = await request.body()
        self._check_size(len(body), "the request")
        headers = {name: value for name, value in request.headers.items() if name not in _OURS}
        bad = next((name for name, value in headers.items() if not _is_sendable(value)), None)
        if bad is not None:
            raise EgressDeniedError(f"the header {bad!r} holds letters beyond Latin-1")
        headers |= self._added[pattern]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.props["at_once_max"], "gateway")
        deadline = RequestDeadline(
            self.props["request_seconds"], wait_s=self.props["timeout_seconds"]
        )
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._send, request.method, url, place, pattern, headers, body, deadline
        )

    def _allowed(self, request: messages.Request) -> tuple[SplitResult, Origin, Origin]:
        url, place = _place(request.url)
        pattern = next((pattern for pattern in self._patterns if pattern.covers(place)), None)
        if pattern is None:
            allowed = ", ".join(map(str, self._added)) or "nothing"
            raise EgressDeniedError(f"{place} is not among what this code may reach: {allowed}")
        if pattern.is_wild and place.host in ip_ranges.METADATA_NAMES:
            raise EgressDeniedError(f"{place} tells a cloud's metadata, which has to be named")
        if request.method not in self.props["methods"]:
            raise EgressDeniedError(
                f"{request.method} is not among the methods that this code may use: "
                f"{', '.join(self.props['methods'])}"
            )
        return url, place, pattern

    def _send(
        self,
        method: str,
        url: SplitResult,
        place: Origin,
        pattern: Origin,
        headers: dict[str, str],
        body: bytes,
        deadline: RequestDeadline,
    ) -> messages.Response:
        """Send it and read the answer; in a thread."""
        connection = _Connection(place, deadline, is_public=pattern.is_wild)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        try:
            connection.request(method, target, body or None, headers)
            answer = connection.getresponse()
            data = answer.read(self.props["body_bytes_max"] + 1)
            self._check_size(len(data), "the answer")
            if answer.length:  # of what it announced; `read` with a limit does not complain
                raise http.client.IncompleteRead(data, answer.length)
            return messages.Response(data, answer.status, messages.Headers(_kept(answer)))
        except TimeoutError:
            if deadline.is_over:
                limit_s = self.props["request_seconds"]
                raise _TooLateError(
                    f"the request to {place} took more than {limit_s:g} s"
                ) from None
            limit_s = self.props["timeout_seconds"]
            raise _TooLateError(f"{place} did not answer in {limit_s:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _UnansweredError(f"{place} cannot be asked: {error}") from None
        finally:
            connection.close()

    def _check_size(self, size: int, what: str) -> None:
        limit = self.props["body_bytes_max"]
        if size > limit:
            raise EgressDeniedError(f"{what} has more than {limit:,} bytes")


class _TooLateError(TimeoutError):
    """Said for tenants."""

    public_message = True


class _UnansweredError(ConnectionError):
    """Said for tenants."""

    public_message = True


class _Connection(http.client.HTTPConnection):
    """One request's connection, to an address that was looked at first."""

    def __init__(self, place: Origin, deadline: RequestDeadline, *, is_public: bool) -> None:
        super().__init__(place.host, place.port)
        self._deadline = deadline
        self.default_port = _PORTS[place.scheme]
        self._place = place
        self._is_public = is_public
        self._may_ask_metadata = not is_public and _is_of_metadata(place.host)

    def connect(self) -> None:
        """Connect, by TLS unless the platform said http."""
        sock = self._connected()
        try:
            if self._place.scheme == "https":
                sock.settimeout(self._deadline.wait_s())
                sock = _tls().wrap_socket(sock, server_hostname=self._place.host)
        except BaseException:
            sock.close()
            raise
        self.sock = DeadlineSocket(sock, self._deadline)

    def _connected(self) -> socket.socket:
        place = self._place
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        failure: OSError = ConnectionError("the name has no address")
        for family, kind, protocol, _, address in found:
            self._check(str(address[0]))
            try:
                # To this very address: a second look at the name could find another.
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.settimeout(self._deadline.wait_s())
                    sock.connect(address)
                except BaseException:
                    sock.close()
                    raise
                return sock
            except OSError as error:
                failure = error
        raise failure

    def _check(self, address: str) -> None:
        """Raises EgressDeniedError where the address is none that the request may go to."""
        if self._is_public and not ip_ranges.is_public(address):
            raise EgressDeniedError(f"{self._place} has a private address, which has to be named")
        if not self._may_ask_metadata and ip_ranges.is_metadata(address):
            raise EgressDeniedError(
                f"{self._place} has the address of a cloud's metadata, which has to be named itself"
            )


def _is_of_metadata(host: str) -> bool:
    """Whether whoever named this host meant a cloud's metadata."""
    try:
        return ip_ranges.is_metadata(host)
    except ValueError:
        return host in ip_ranges.METADATA_NAMES


def _headers(host: str, added: Mapping[str, str]) -> dict[str, str]:
    """What the platform adds for a host; ValueError, without the value, where it cannot be sent."""
    headers = dict(messages.Headers(added))
    for name, value in headers.items():
        if not _is_sendable(value):
            raise ValueError(f"the header {name!r} for {host} holds letters beyond Latin-1")
    return headers


def _is_sendable(value: str) -> bool:
    return value.isascii() or max(value) <= "\xff"


def _kept(answer: http.client.HTTPResponse) -> list[tuple[str, str]]:
    """The headers of an answer that are the tenant's business, as far as they are well formed."""
    kept = []
    for name, value in answer.getheaders():
        pair = name, " ".join(value.split())
        try:
            messages.Headers([pair])
        except ValueError:
            continue
        if name.lower() not in _OURS:
            kept.append(pair)
    return kept


def _tls() -> ssl.SSLContext:
    global _context
    if _context is None:
        _context = ssl.create_default_context()
    return _context


_context: ssl.SSLContext | None = None


def _place(text: str) -> tuple[SplitResult, Origin]:
    """The parts of a URL and where it leads; EgressDeniedError for one that is odd."""
    if any(not "!" <= character <= "~" for character in text) or "\\" in text:
        raise EgressDeniedError("a URL holds no spaces, backslashes or letters beyond ASCII")
    try:
        url = urlsplit(text)
        host, port = (url.hostname or "").rstrip("."), url.port
    except ValueError as error:
        raise EgressDeniedError(f"this is no URL: {error}") from None
    if url.scheme not in _PORTS or not _HOST.fullmatch(host):
        raise EgressDeniedError("a URL begins with https:// or http:// and the name of a host")
    if "@" in url.netloc:
        raise EgressDeniedError("a URL holds no user and no password: they go into a header")
    return url, Origin(url.scheme, host, _PORTS[url.scheme] if port is None else port)


def _pattern(text: str) -> Origin:
    """What one of `hosts` stands for; ValueError when it is none."""
    if not isinstance(text, str):
        raise TypeError(f"a host is text, not {type(text).__name__}")
    is_wild = "*" in text
    given = text if "://" in text else f"https://{text}"
    try:
        url, place = _place(given.replace("://*.", "://", 1) if is_wild else given)
    except EgressDeniedError as error:
        raise ValueError(f"{text!r} is no host: {error}") from None
    if is_wild and (text.count("*") > 1 or "://*." not in given):
        raise ValueError(f"{text!r}: a * stands at the beginning, as in *.example.com")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(f"{text!r} has a path: hosts are allowed as a whole")
    return Origin(place.scheme, f"*.{place.host}", place.port) if is_wild else place
