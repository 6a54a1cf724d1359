"""Where a log can lie: said and checked before anything starts, and the same for every process."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows.eventlog.errors import InvalidError, Unavailable
from dynamic_workflows.eventlog.store import credentials
from dynamic_workflows.eventlog.store.locations import root_of
from dynamic_workflows.eventlog.store.open_store import open_store


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("a\0b", "control characters"),
        ("data\n", "control characters"),
        ("bogus://x/y", "use a path, file://"),
        ("http://host/log", "use a path, file://"),
        ("https://bucket.s3.amazonaws.com/log", "use a path, file://"),
        ("gcs://bucket/log", "use a path, file://"),
        ("://x", "use a path, file://"),
        ("file://", "names no path"),
        ("file://data", "'data' would be a host: write 'file:///data'"),
        ("file://data/log", "or 'data/log' for one from here"),
        ("file://./log", "or './log' for one from here"),
        ("file://~/log", "or '~/log' for one from here"),
        ("file:log", "two slashes"),
        ("file:", "two slashes"),
        ("file:///a#b", "%23"),
        ("file:///a?b", "%3F"),
        ("s3:/bucket/log", "write 's3://bucket/log' as text"),
        ("S3:/bucket/log", "write 's3://bucket/log' as text"),
        ("s3:bucket/log", "write 's3://bucket/log' as text"),
        ("s3:\\\\bucket/log", "write 's3://bucket/log' as text"),
        ("s3:", "two slashes"),
        ("gs:", "two slashes"),
        ("az:/container", "write 'az://container' as text"),
        ("http:/host", "two slashes"),
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("s3:///log", "names no bucket"),
        ("S3://", "names no bucket"),
        ("gs:// /log", "names no bucket"),
        ("az://", "names no bucket"),
        ("s3://bucket/log?region=x", "a query"),
        ("s3://bucket/../other", "no folders to go up from"),
        ("s3://bucket//log", "no empty names"),
        ("~no-such-user-at-all/log", "home"),
        ("s3://[bucket/log", "is no place"),
        (Path("s3://bucket/log"), "a pathlib.Path takes away"),
    ],
)
def test_what_is_no_place_for_a_log_is_refused_at_once(place: str | Path, says: str) -> None:
    with pytest.raises(InvalidError, match="is no place for a log") as caught:
        dw.connect(place)
    assert says in str(caught.value)
    with pytest.raises(InvalidError):
        open_store(place)


def test_a_password_in_a_place_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidError, match="names no password") as caught:
        dw.connect("s3://key:very-secret@bucket/log")
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "root"),
    [
        ("S3://Bucket/Log/", "s3://Bucket/Log"),
        ("s3://bucket", "s3://bucket"),
        ("abfss://container@account.dfs.core.windows.net/log", None),
        ("memory://name", "memory://name"),
        ("file:///data/a%20b%23c", "/data/a b#c"),
        ("file://localhost/data", "/data"),
        ("FILE:///data", "/data"),
        ("file:/data/log", "/data/log"),
        ("~", "{home}"),
        ("~/", "{home}"),
        ("./~", "{here}/~"),
        ("data?x#y", "{here}/data?x#y"),
        ("C:", "{here}/C:"),
        ("project:log", "{here}/project:log"),
        ("./s3:/bucket", "{here}/s3:/bucket"),
        ("a/../b", "{here}/b"),
    ],
)
def test_a_place_means_what_a_person_means(
    place: str, root: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    wanted = (root or place).format(home=tmp_path / "home", here=tmp_path / "here")
    assert root_of(place) == wanted
    assert root_of(wanted) == wanted, "every process may do it again"


@pytest.mark.parametrize(
    ("place", "variable"),
    [
        ("s3://bucket/log", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("gs://bucket/log", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://container/log", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
async def test_missing_credentials_are_named_within_seconds(
    place: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Where there is no network the metadata service does not answer; it must not in a cloud either.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        credentials._is_in_cloud.cache_clear()
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="there are no credentials for") as caught:
            await dw.connect(place)
        assert time.monotonic() - begun < 10
    credentials._is_in_cloud.cache_clear()
    assert variable in str(caught.value)
    assert "169.254" not in str(caught.value)


async def test_credentials_that_are_refused_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"<Error><Code>InvalidAccessKeyId</Code></Error>")

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")
        store = open_store("s3://bucket/log")
        with pytest.raises(Unavailable, match="the credentials were refused .*AWS_ACCESS_KEY_ID"):
            await store.create("a", b"")
        server.shutdown()


def test_a_place_is_one_place_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sp ace ü 日本 100%"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    written: list[str | Path] = [folder, str(folder), folder.as_uri(), folder.name]
    written.append(f"~/{folder.name}")
    assert {root_of(place) for place in written} == {str(folder)}
    assert open_store(folder.as_uri()).root == open_store(root_of(folder.as_uri())).root


def test_a_platform_reads_where_it_was_connected_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    platform = dw.connect("data")
    monkeypatch.chdir("/")
    assert platform._log == str(tmp_path / "data")


async def test_a_log_that_cannot_be_written_is_refused_before_ray_is_started(
    tmp_path: Path,
) -> None:
    import ray

    (tmp_path / "file").write_text("not a directory")
    was_initialized = ray.is_initialized()
    with pytest.raises(Unavailable, match="Not a directory"):
        async with dw.connect(tmp_path / "file"):
            pass
    assert ray.is_initialized() == was_initialized


async def test_a_log_in_memory_is_refused_on_ray() -> None:
    with pytest.raises(InvalidError, match="dynamic_workflows.testing"):
        await dw.connect("memory://").__aenter__()
