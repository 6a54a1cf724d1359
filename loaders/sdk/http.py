"""Http: requests and responses, as entrypoints and gateways hold them and as they travel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from dynamic_workflows.eventlog.errors import InvalidError

# RFC 9110: what a header's name is made of, and what its value must not hold. A blank in a name
# would let a tenant say twice, to some servers, what the gateway says once.
_NAME = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_CONTROLS = frozenset(map(chr, [*range(9), *range(10, 32), 127]))


class Headers(Mapping[str, str]):
    """Headers by name, whatever the case; repeated ones are joined by a comma.

    ValueError for a name that is none, and for control characters in a value.
    """

    def __init__(self, items: Mapping[str, str] | Iterable[tuple[str, str]] | None = None) -> None:
        self._items: dict[str, str] = {}
        pairs = items.items() if isinstance(items, Mapping) else items or ()
        for name, value in pairs:
            key = str(name).lower()
            text = str(value)
            if not key or not _NAME.issuperset(key):
                raise ValueError(f"{key[:80]!r} is no name of a header")
            if not _CONTROLS.isdisjoint(text):
                raise ValueError(f"the header {key!r} holds a line break or another control code")
            self._items[key] = f"{self._items[key]}, {text}" if key in self._items else text

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._items

    def __repr__(self) -> str:
        return f"Headers({self._items!r})"


class _Message:
    headers: Headers
    _body: bytes

    async def body(self) -> bytes:
        """The body as it is."""
        return self._body

    async def text(self) -> str:
        """The body as text in UTF-8."""
        return self._body.decode("utf-8")

    async def json(self) -> Any:
        """The body as JSON; ValueError when it is none."""
        try:
            return msgspec.json.decode(self._body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"the body is no JSON: {error}") from None

    def _fill(self, body: Any, headers: Any) -> None:
        self.headers = Headers(headers)
        self._body, kind = _encoded(body)
        if kind and "content-type" not in self.headers:
            self.headers = Headers([*self.headers.items(), ("content-type", kind)])


class Request(_Message):
    """A request: `method`, `url`, `headers` whatever the case, and its body."""

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        json: Any = None,
    ) -> None:
        """A body that is neither text nor bytes is encoded as JSON; `json` is in any case.

        ValueError for a method or headers that could say more than one thing on the wire.
        """
        if json is not None:
            if body is not None:
                raise TypeError("a request has one body: give body or json")
            body = msgspec.json.encode(json)
            headers = {"content-type": "application/json"} | dict(Headers(headers))
        self.method = str(method).upper()
        if not self.method or not _NAME.issuperset(self.method.lower()):
            raise ValueError(f"{self.method[:80]!r} is no method")
        self.url = str(url)
        self._fill(body, headers)

    def __repr__(self) -> str:
        return f"Request({self.method!r}, {self.url!r})"


class Response(_Message):
    """A response: `status`, `headers` whatever the case, and its body.

    A body that is neither text nor bytes is encoded as JSON.
    """

    def __init__(
        self, body: Any = None, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        if type(status) is not int or not 100 <= status <= 999:
            raise ValueError(f"{status!r} is no HTTP status")
        self.status = status
        self._fill(body, headers)

    @property
    def ok(self) -> bool:
        """Whether the status says success."""
        return 200 <= self.status < 300

    def __repr__(self) -> str:
        return f"Response(status={self.status})"


def with_query(url: str, params: Mapping[str, Any]) -> str:
    """The URL with these added to its query; a list is a name that is repeated."""
    from urllib.parse import urlencode

    url, mark, fragment = url.partition("#")
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{urlencode(params, doseq=True)}{mark}{fragment}"


def _encoded(body: Any) -> tuple[bytes, str | None]:
    if body is None:
        return b"", None
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body), None
    if isinstance(body, str):
        return body.encode("utf-8"), "text/plain; charset=utf-8"
    return msgspec.json.encode(body), "application/json"


# --- as they travel: plain dicts in codec text ---------------------------------------------------


def request_to_plain(request: Any) -> dict[str, Any]:
    """A request as a plain dict; text is taken as the URL of a GET."""
    if isinstance(request, str):
        request = Request("GET", request)
    if not isinstance(request, Request):
        raise TypeError(f"a request is a Request or a URL, not a {type(request).__name__}")
    return {
        "http": "request",
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "body": request._body,
    }


def request_from_plain(plain: Any) -> Request:
    """The request that `request_to_plain` wrote; InvalidError when it is none."""
    body, headers = _plain_parts(plain, "request")
    method, url = plain.get("method"), plain.get("url")
    if not isinstance(method, str) or not isinstance(url, str):
        raise InvalidError("a request has a method and a URL")
    try:
        return Request(method, url, headers, body)
    except ValueError as error:
        raise InvalidError(str(error)) from None


def response_to_plain(answer: Any) -> dict[str, Any]:
    """What `fetch` returned as a plain dict; what is no Response becomes JSON with status 200."""
    if not isinstance(answer, Response):
        answer = Response(_as_json(answer), headers={"content-type": "application/json"})
    return {
        "http": "response",
        "status": answer.status,
        "headers": dict(answer.headers),
        "body": answer._body,
    }


def _as_json(answer: Any) -> bytes:
    try:
        return msgspec.json.encode(answer)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"fetch returned what JSON cannot hold: {error}") from None


def response_from_plain(plain: Any) -> Response:
    """The response that `response_to_plain` wrote; InvalidError when it is none."""
    body, headers = _plain_parts(plain, "response")
    try:
        return Response(body, plain.get("status"), headers)
    except ValueError as error:
        raise InvalidError(str(error)) from None


def _plain_parts(plain: Any, kind: str) -> tuple[bytes, dict[str, str]]:
    if not isinstance(plain, dict) or plain.get("http") != kind:
        raise InvalidError(f"not a {kind}")
    body, headers = plain.get("body"), plain.get("headers")
    is_text = isinstance(headers, dict) and all(
        isinstance(part, str) for pair in headers.items() for part in pair
    )
    if not isinstance(body, bytes) or not isinstance(headers, dict) or not is_text:
        raise InvalidError(f"a {kind} has headers of text and a body of bytes")
    return body, headers


_REQUEST_KEYS = frozenset({"http", "method", "url", "headers", "body"})
_RESPONSE_KEYS = frozenset({"http", "status", "headers", "body"})


def to_plain(value: Any) -> Any:
    """The value, with a Request or Response at its top as a plain dict."""
    if isinstance(value, Response):
        return response_to_plain(value)
    return request_to_plain(value) if isinstance(value, Request) else value


def from_plain(value: Any) -> Any:
    """The value, with what `to_plain` made of a Request or Response as itself again."""
    if type(value) is dict and "http" in value:
        if value["http"] == "response" and value.keys() == _RESPONSE_KEYS:
            return response_from_plain(value)
        if value["http"] == "request" and value.keys() == _REQUEST_KEYS:
            return request_from_plain(value)
    return value
