"""Object-store servers for tests, started on free ports: S3 by moto, Azure by its own emulator."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AZURITE = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
WAIT_SECONDS = 240
# Servers on this machine are reached without a proxy, whatever the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

S3_ENVIRONMENT = {
    "AWS_ALLOW_HTTP": "true",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# The emulator's account and key, the same for everyone, as its documentation gives them.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def azurite_missing() -> str | None:
    """Why there is no Azure server here, or None when there is one."""
    if shutil.which("node") is None:
        return "node is not installed, so Azure's emulator cannot run"
    if not AZURITE.exists():
        return "Azure's emulator is not installed: `make azurite` does it"
    return None


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment of an S3 server with the empty bucket `bucket`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
    with _process([*command, "-p", str(port)], url):
        request = urllib.request.Request(f"{url}/bucket", method="PUT")
        _OPENER.open(request).close()
        yield {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": url}


@contextmanager
def azure_server() -> Iterator[dict[str, str]]:
    """The environment of an Azure server with the empty container `bucket`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_ENDPOINT": f"{url}/{AZURE_ACCOUNT}",
        "AZURE_ALLOW_HTTP": "true",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [str(AZURITE), "--silent", "--inMemoryPersistence", "--skipApiVersionCheck"]
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry"]
        with _process(command, url, folder=folder):
            _create_container(f"{url}/{AZURE_ACCOUNT}")
            yield environment


def _create_container(url: str) -> None:
    """The one call to the emulator that obstore has no function for: signed by hand."""
    import base64
    import email.utils
    import hashlib
    import hmac

    date = email.utils.formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n"
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/bucket\nrestype:container"
    text = "PUT\n" + "\n" * 11 + headers + resource
    digest = hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)
    request = urllib.request.Request(
        f"{url}/bucket?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Content-Length": "0",
            "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}",
        },
    )
    _OPENER.open(request).close()


@contextmanager
def _process(command: list[str], url: str, folder: str | None = None) -> Iterator[None]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
    )
    try:
        _wait_for(url, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            _OPENER.open(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer within {WAIT_SECONDS} s")
