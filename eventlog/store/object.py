"""ObjectStore: objects in S3, Azure Blob Storage, Google Cloud Storage, or what speaks like them.

`create` is a PUT with `If-None-Match: *`, so the service decides who was first. Endpoint, region
and credentials come from the environment (`AWS_…`, `AZURE_…`, `GOOGLE_…`), as the services' own
tools take them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from ..errors import InvalidError, Unavailable, WorkflowsError
from .base import AlreadyExists, Entries, Entry, NotFound, check_key
from .credentials import check_credentials, refused

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

RETRIES: RetryConfig = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "init_backoff": timedelta(milliseconds=50),
        "max_backoff": timedelta(seconds=3),
        "base": 2,
    },
}
CLIENT: ClientConfig = {
    "timeout": timedelta(seconds=20),
    "connect_timeout": timedelta(seconds=5),
    # The services' own endpoints are https; http is spoken only to an endpoint that says so.
    "allow_http": True,
}
LIST_CHUNK = 1000
# obstore's own words, where the service answered with the whole object instead of a refusal.
_PAST_END = re.compile(r": Wanted range starting at \d+, but object was only \d+ bytes long$")


class ObjectStore:
    """Named bytes under a bucket and a prefix."""

    def __init__(self, url: str, **config: Any) -> None:
        self.root = url.rstrip("/")
        if not config:
            check_credentials(self.root)
        try:
            self.objects: Any = from_url(
                self.root, client_options=CLIENT, retry_config=RETRIES, **config
            )
        except (BaseError, ValueError) as error:
            raise InvalidError(f"{url!r} cannot be used as a store: {error}") from None

    async def create(self, key: str, data: bytes) -> None:
        """Send a PUT with if-none-match; a conflict of two creates at once (409) is Unavailable."""
        try:
            await obstore.put_async(
                self.objects, check_key(key), data, mode="create", use_multipart=False
            )
        except Exception as error:
            raise self._explain_write(error, key) from None

    async def put(self, key: str, data: bytes) -> None:
        """Send a PUT."""
        try:
            await obstore.put_async(self.objects, check_key(key), data, use_multipart=False)
        except Exception as error:
            raise self._explain_write(error, key) from None

    async def get(self, key: str) -> bytes:
        """Return the object's bytes, by a GET."""
        try:
            reply = await obstore.get_async(self.objects, check_key(key))
            return bytes(await reply.bytes_async())
        except Exception as error:
            raise self._explain(error, key) from None

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a range of bytes, by a GET; empty where the object ends before it."""
        if length <= 0:
            return b""
        try:
            reply = await obstore.get_async(
                self.objects, check_key(key), options={"range": (start, start + length)}
            )
            return bytes(await reply.bytes_async())
        except Exception as error:
            if self._is_past_end(error):
                return b""
            raise self._explain(error, key) from None

    async def list(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix, page by page."""
        folder = prefix.rpartition("/")[0]
        found: list[Any] = []
        try:
            stream = obstore.list(self.objects, folder or None, offset=after, chunk_size=LIST_CHUNK)
            async for chunk in stream:
                found += chunk
        except Exception as error:
            raise self._explain_list(error, prefix) from None
        return _entries(found, prefix, after)

    async def delete(self, key: str) -> None:
        """Send a DELETE."""
        try:
            await obstore.delete_async(self.objects, check_key(key))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._explain(error, key) from None

    def get_blocking(self, key: str) -> bytes:
        """Return the object's bytes, by a GET."""
        try:
            return bytes(obstore.get(self.objects, check_key(key)).bytes())
        except Exception as error:
            raise self._explain(error, key) from None

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        """Return a range of bytes, by a GET."""
        if length <= 0:
            return b""
        try:
            options: Any = {"range": (start, start + length)}
            return bytes(obstore.get(self.objects, check_key(key), options=options).bytes())
        except Exception as error:
            if self._is_past_end(error):
                return b""
            raise self._explain(error, key) from None

    def list_blocking(self, prefix: str, *, after: str | None = None) -> Entries:
        """Return the entries with this prefix."""
        folder = prefix.rpartition("/")[0]
        try:
            stream = obstore.list(self.objects, folder or None, offset=after, chunk_size=LIST_CHUNK)
            found = [meta for chunk in stream for meta in chunk]
        except Exception as error:
            raise self._explain_list(error, prefix) from None
        return _entries(found, prefix, after)

    def local_path(self, key: str) -> None:
        """Return None: the objects have no files here."""
        return None

    async def close(self) -> None:
        """Do nothing: connections end with the object."""

    def _is_past_end(self, error: Exception) -> bool:
        # The text holds the address as well, so a bare "416" would also be a port or part of a key.
        if isinstance(error, FileNotFoundError) or not isinstance(error, BaseError):
            return False
        return _has_status(error, "416") or _PAST_END.search(_first_line(error)) is not None

    def _explain_write(self, error: Exception, key: str) -> BaseException:
        explained = self._explain(error, key)
        if isinstance(explained, NotFound):
            return Unavailable(f"{self.root} does not exist: create the bucket, then try again")
        return explained

    def _explain_list(self, error: Exception, prefix: str) -> BaseException:
        # An empty listing is no error, so what was not found is the bucket.
        if isinstance(error, BaseError) and _has_status(error, "404"):
            return Unavailable(f"{self.root} does not exist: create the bucket, then try again")
        return self._explain(error, prefix)

    def _explain(self, error: Exception, key: str) -> BaseException:
        if isinstance(error, WorkflowsError):
            return error
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{self.root}: {key} does not exist")
        if isinstance(error, (AlreadyExistsError, PreconditionError)):
            return AlreadyExists(f"{self.root}: {key} exists")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or _is_about_identity(
            str(error)
        ):
            return refused(self.root, _first_line(error))
        if isinstance(error, (BaseError, OSError, ValueError)):
            return Unavailable(f"{self.root}: {key}: {_first_line(error)}: try again later")
        return error


def _is_about_identity(text: str) -> bool:
    # The client asked a machine's metadata service in vain. A key has no two slashes in a row.
    return "//169.254.169.254" in text or "//metadata.google.internal" in text


def _entries(found: Iterable[Any], prefix: str, after: str | None) -> Entries:
    entries = [Entry(str(meta["path"]), int(meta["size"])) for meta in found]
    return sorted(
        (e for e in entries if e.key.startswith(prefix) and (after is None or e.key > after)),
        key=lambda entry: entry.key,
    )


def _has_status(error: BaseError, status: str) -> bool:
    return f" status code: {status} " in _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
