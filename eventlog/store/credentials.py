"""Credentials: whether there are any for a bucket, and what to set where there are none.

The client of object stores that finds none in the environment asks the metadata service that
machines in a cloud have, for half a minute where there is no such machine. So that service is
asked here first, once for each process.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import Unavailable

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class _Service:
    names: tuple[str, ...]
    """Variables any of which gives credentials, or says that none are needed."""
    files: tuple[str, ...]
    advice: str
    asks: tuple[tuple[str, str, str], ...]
    """How a machine of the cloud is asked: method, URL, header; one answer of 200 is enough."""


_AWS = _Service(
    names=(
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
        "AWS_METADATA_ENDPOINT",
    ),
    files=(),
    advice=(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, AWS_REGION,"
        " AWS_ENDPOINT_URL where they are needed), or run on a machine that has a role; profiles"
        " in ~/.aws are not read"
    ),
    asks=(
        (
            "PUT",
            "http://169.254.169.254/latest/api/token",
            "X-aws-ec2-metadata-token-ttl-seconds: 60",
        ),
        ("GET", "http://169.254.169.254/latest/meta-data/iam/security-credentials/", ""),
    ),
)
_GOOGLE = _Service(
    names=(
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE",
    ),
    files=("~/.config/gcloud/application_default_credentials.json",),
    advice=(
        "set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT to the file of a service"
        " account, or run on a machine that has one"
    ),
    asks=(
        (
            "GET",
            "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/",
            "Metadata-Flavor: Google",
        ),
    ),
)
_AZURE = _Service(
    names=(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_CLIENT_SECRET",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI",
        "AZURE_SKIP_SIGNATURE",
        "AZURE_STORAGE_USE_EMULATOR",
        "AZURE_MSI_ENDPOINT",
        "AZURE_IDENTITY_ENDPOINT",
        "IDENTITY_ENDPOINT",
        "MSI_ENDPOINT",
    ),
    files=(),
    advice=(
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or a SAS token, or a client"
        " with its secret), or run on a machine that has an identity"
    ),
    asks=(
        (
            "GET",
            "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2019-08-01"
            "&resource=https://storage.azure.com",
            "Metadata: true",
        ),
    ),
)
_SERVICES = {"s3": _AWS, "s3a": _AWS, "gs": _GOOGLE}
"""By scheme; the others are Azure's."""


def check_credentials(url: str) -> None:
    """Raise Unavailable, within some seconds, where nothing gives credentials for the bucket."""
    service = _service(url)
    if any(os.environ.get(name) for name in service.names):
        return
    if any(Path(file).expanduser().exists() for file in service.files):
        return
    if not _is_in_cloud(service):
        raise Unavailable(f"there are no credentials for {url}: {service.advice}")


def refused(url: str, why: str) -> Unavailable:
    """Return the error for credentials that the store does not accept."""
    return Unavailable(f"{url}: the credentials were refused ({why}): {_service(url).advice}")


def _service(url: str) -> _Service:
    return _SERVICES.get(url.partition("://")[0].lower(), _AZURE)


@cache
def _is_in_cloud(service: _Service) -> bool:
    """Return whether this machine's metadata service may give credentials."""
    return any(_answers(*ask) for ask in service.asks)


def _answers(method: str, url: str, header: str) -> bool:
    name, _, value = header.partition(": ")
    request = urllib.request.Request(url, method=method, headers={name: value} if name else {})
    try:
        # Its own opener: `urlopen` would keep this moment's proxies for the whole program.
        with urllib.request.build_opener().open(request, timeout=_ANSWER_S) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False
