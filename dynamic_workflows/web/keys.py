"""Keys: who may call, and what. Only hashes of keys are kept in memory; none is ever shown.

A key is a long random text (`Keys.generate`). A role says what its bearer may do, `tenants` to
whom. Short-lived tokens for one tenant or one instance are signed with a secret and need no list.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..eventlog.clock import US, SystemClock
from ..eventlog.errors import InvalidError

READ, RUN, DEPLOY = "read", "run", "deploy"
ROLES = {
    "viewer": frozenset({READ}),
    "operator": frozenset({READ, RUN}),
    "deployer": frozenset({READ, DEPLOY}),
    "admin": frozenset({READ, RUN, DEPLOY}),
}
"""What the bearer of a key may do, by role."""
TOKEN_PREFIX = "dwt_"
TOKEN_SECONDS_MAX = 86_400


@dataclass(frozen=True)
class Key:
    """What a key or token grants: a role, over all tenants (None) or over some.

    `workflow` and `instance` bind it to one instance. `name` is what the audit log calls it.
    """

    role: str = "viewer"
    tenants: frozenset[str] | None = None
    name: str = "key"
    workflow: str | None = None
    instance: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidError(f"{self.role!r} is no role: use one of {', '.join(ROLES)}")

    def allows(self, action: str) -> bool:
        """Whether its role includes an action: READ, RUN or DEPLOY."""
        return action in ROLES[self.role]

    def covers(self, tenant: str | None, workflow: str | None, instance: str | None) -> bool:
        """Whether it reaches this far; None stands for all tenants, workflows, instances."""
        if self.tenants is not None and tenant not in self.tenants:
            return False
        return self.instance is None or (self.workflow, self.instance) == (workflow, instance)


class Keys:
    """The keys of an application, by their hashes."""

    def __init__(
        self,
        keys: Mapping[str, str | Key | Mapping[str, object]] | Collection[str] = (),
        *,
        secret: bytes | None = None,
        now_us: Callable[[], int] | None = None,
    ) -> None:
        """`keys`: from each key to its role, its Key, or a dict of a Key's fields.

        A plain collection of keys grants `admin`. `secret` signs tokens, and is the same in all
        processes that serve one platform; None: a random one. Raises InvalidError.
        """
        named = keys if isinstance(keys, Mapping) else dict.fromkeys(keys, "admin")
        self._by_hash = {_hash(_checked(key)): _key(granted) for key, granted in named.items()}
        self._secret = secret or secrets.token_bytes(32)
        self._secrets = [self._secret]
        self._now_us = now_us or SystemClock().now_us

    def accept(self, secret: bytes) -> None:
        """Take tokens that were signed with this secret as well."""
        self._secrets.append(secret)

    @staticmethod
    def generate() -> str:
        """A new key: 43 characters, 256 random bits."""
        return secrets.token_urlsafe(32)

    def find(self, text: str) -> Key | None:
        """What a bearer's text grants, or None."""
        if text.startswith(TOKEN_PREFIX):
            return next(filter(None, (self._token(text, one) for one in self._secrets)), None)
        return self._by_hash.get(_hash(text))

    def token(
        self,
        tenant: str,
        *,
        workflow: str | None = None,
        instance: str | None = None,
        role: str = "viewer",
        seconds: float = 900,
    ) -> str:
        """A token for one tenant, or for one instance of it, which ends after `seconds`.

        Raises InvalidError for more than a day, and for an instance without its workflow.
        """
        return sign(
            self._secret, tenant, workflow=workflow, instance=instance, role=role,
            seconds=seconds, now_us=self._now_us,
        )  # fmt: skip

    def _token(self, token: str, secret: bytes) -> Key | None:
        try:
            body, _, signature = token.removeprefix(TOKEN_PREFIX).partition(".")
            text = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            signed = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        except ValueError:
            return None
        if not hmac.compare_digest(_signature(secret, text), signed):
            return None
        facts = msgspec.json.decode(text)
        if facts["until_us"] <= self._now_us():
            return None
        return Key(
            facts["role"], frozenset({facts["tenant"]}), "token",
            facts["workflow"], facts["instance"],
        )  # fmt: skip


def sign(
    secret: bytes,
    tenant: str,
    *,
    workflow: str | None,
    instance: str | None,
    role: str,
    seconds: float,
    now_us: Callable[[], int] | None = None,
) -> str:
    """A token, signed with a secret; see `Keys.token`."""
    if not 0 < seconds <= TOKEN_SECONDS_MAX:
        raise InvalidError(f"a token lasts up to {TOKEN_SECONDS_MAX:,} seconds, not {seconds}")
    if (workflow is None) != (instance is None):
        raise InvalidError("a token for one instance names both its workflow and its id")
    Key(role)
    body = {
        "tenant": tenant, "workflow": workflow, "instance": instance, "role": role,
        "until_us": (now_us or SystemClock().now_us)() + round(seconds * US),
    }  # fmt: skip
    text = msgspec.json.encode(body)
    return TOKEN_PREFIX + _text(text) + "." + _text(_signature(secret, text))


def _signature(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _checked(key: object) -> str:
    if not isinstance(key, str) or not key or key.startswith(TOKEN_PREFIX):
        raise InvalidError("a key is a text that is not empty: make one with Keys.generate()")
    return key


def _key(granted: str | Key | Mapping[str, Any]) -> Key:
    if isinstance(granted, Key):
        return granted
    if isinstance(granted, str):
        return Key(granted)
    if not isinstance(granted, Mapping) or granted.keys() - {"role", "tenants", "name"}:
        raise InvalidError('a key grants a role, or {"role", "tenants", "name"}')
    tenants = granted.get("tenants")
    return Key(
        granted.get("role", "viewer"),
        None if tenants is None else frozenset(tenants),
        granted.get("name", "key"),
    )
