"""Locations: how users name where a log lies, and what each name means.

A location is a path, or a URI of one of a few schemes. What looks like a URI but is none, or is
ambiguous, is refused with a sentence: a folder called `s3:` helps nobody.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import InvalidError

BUCKETS = ("s3", "s3a", "az", "azure", "abfs", "abfss", "gs")
_SCHEMES = ("file", "memory", *BUCKETS)
_FOREIGN = ("http", "https", "ftp", "sftp", "ssh", "hdfs", "gcs", "s3n", "wasb", "wasbs", "minio")
_HALF = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)


def root_of(log: str | Path) -> str:
    """Return a log's root as an absolute path or URI, the same from every process. Raises
    InvalidError.

    A path becomes absolute, with `~` and links resolved; a URI has its scheme in small letters and
    no slash at its end.
    """
    text = str(log)
    if not text.strip():
        raise _no_place(text, "it is empty")
    if any(letter < " " or letter == "\x7f" for letter in text):
        raise _no_place(text, "it has control characters")
    if "://" in text:
        return _root_of_uri(text)
    half = _HALF.match(text)
    scheme = half[1].lower() if half else ""
    if scheme == "file" and text[5:6] == "/":
        return _root_of_uri(f"file://{text[5:]}")  # as the standard has it, too
    if half and scheme in (*_SCHEMES, *_FOREIGN):
        rest = text[half.end() :].lstrip("/\\") or "bucket/log"
        raise _no_place(
            text,
            f"after {scheme}: come two slashes, which a pathlib.Path takes away: write"
            f" {f'{scheme}://{rest}'!r} as text, or {f'./{text}'!r} for a folder of that name",
        )
    return _root_of_path(text, text)


def _root_of_uri(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise _no_place(text, str(error)) from None
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise _no_place(text, "use a path, file://, s3://, az:// or gs://")
    if parts.password is not None:
        # Not even a message repeats it.
        raise InvalidError(
            f"a place of a log names no password ({scheme}://…@{parts.hostname}): credentials come"
            " from the environment"
        )
    if scheme == "memory":
        return text
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise _no_place(text, "it has a query or a fragment: write ? as %3F and # as %23")
    return _root_of_file(text, parts) if scheme == "file" else _root_of_bucket(text, parts)


def _root_of_file(text: str, parts: SplitResult) -> str:
    if parts.netloc not in ("", "localhost"):
        raise _no_place(
            text,
            f"{parts.netloc!r} would be a host: write {f'file:///{parts.netloc}{parts.path}'!r} for"
            f" a path from the top, or {unquote(parts.netloc + parts.path)!r} for one from here",
        )
    if not parts.path:
        raise _no_place(text, "it names no path")
    return _root_of_path(unquote(parts.path), text)


def _root_of_bucket(text: str, parts: SplitResult) -> str:
    scheme = parts.scheme.lower()
    if not (parts.username or parts.netloc).strip("@:. "):
        raise _no_place(text, f"it names no bucket: write {scheme}://bucket/log")
    if ".." in unquote(parts.path).split("/") or "//" in parts.path.rstrip("/"):
        raise _no_place(text, "a bucket has no folders to go up from, and no empty names")
    return f"{scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _root_of_path(path: str, text: str) -> str:
    if "\0" in path:
        raise _no_place(text, "it has control characters")
    try:
        # A Path forgets the dot of "./~", which is how a folder of that name is written.
        place = Path(path).expanduser() if path.startswith("~") else Path(path)
        return str(place.resolve())
    except (RuntimeError, OSError, ValueError) as error:
        raise _no_place(text, f"{error}".rstrip(".")) from None


def _no_place(text: str, why: str) -> InvalidError:
    return InvalidError(f"{text!r} is no place for a log: {why}")
