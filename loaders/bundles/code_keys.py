"""Code keys: encrypts stored bundles, so that only the platform's key reads them.

A bundle holds what a tenant is given: values of `env`, and services with their props. With a key
the whole bundle is encrypted where it lies (Fernet: AES and an HMAC), and its content hash is keyed
too, since a plain hash would let a reader of the log's listing try guesses of a short secret.

The first key encrypts, all of them decrypt. The last one keys the hash, so that a new key in front
changes no hash. A bundle that was stored without a key is read as before.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from dynamic_workflows.eventlog.errors import CodeError, Corrupt, InvalidError

from . import bundle as bundles
from .bundle import Bundle

_MAGIC = b"DWSEALED1"
_CHECK_BYTES = hashlib.sha256().digest_size
_KEY_BYTES = 32


class CodeKeys:
    """The keys of one platform, newest first; without keys bundles are stored unencrypted."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Take keys that `new_key` made; raises InvalidError for any other text."""
        raw = [_raw(key) for key in keys]
        self._keys = [base64.urlsafe_b64encode(key) for key in raw]
        # Of its own, so that the hash says nothing about what encrypts.
        self._hash_key = (
            hmac.digest(raw[-1], b"dynamic-workflows content hash", "sha256") if raw else None
        )

    def __repr__(self) -> str:
        return f"CodeKeys({len(self._keys)} keys)"

    def keyed(self, bundle: Bundle) -> Bundle:
        """Return the bundle with its hash keyed, where there is a key and it has none yet."""
        if self._hash_key is None or bundle.hash_key is not None:
            return bundle
        return msgspec.structs.replace(bundle, hash_key=self._hash_key)

    def seal(self, bundle: Bundle) -> bytes:
        """Return the bytes to store at `code/<content hash>`, with their own SHA-256 at the end."""
        if not self._keys:
            return bundle.stored()
        from cryptography.fernet import Fernet

        data = _MAGIC + Fernet(self._keys[0]).encrypt(bundle.stored())
        return data + hashlib.sha256(data).digest()

    def open(self, data: bytes, content_hash: str) -> Bundle:
        """Return the bundle that was sealed.

        Raises Corrupt for bytes that are damaged or another bundle's, CodeError
        (`code.load_failed`) where the key is missing or another.
        """
        if not data.startswith(_MAGIC):
            return bundles.from_stored(data, content_hash)
        _check(data, content_hash)
        if not self._keys:
            raise CodeError(
                f"the stored code {content_hash} is encrypted, and this platform has no key: give"
                " the one that it was stored with as code_keys",
                code="code.load_failed",
            )
        from cryptography.fernet import Fernet, InvalidToken, MultiFernet

        token = data[len(_MAGIC) : -_CHECK_BYTES]
        try:
            stored = MultiFernet([Fernet(key) for key in self._keys]).decrypt(token)
        except InvalidToken:
            raise CodeError(
                f"the stored code {content_hash} is encrypted with another key than the"
                f" {len(self._keys)} in code_keys: add the one that it was stored with at the end",
                code="code.load_failed",
            ) from None
        return bundles.from_stored(stored, content_hash)


def check_stored(data: bytes, content_hash: str) -> None:
    """Raise Corrupt unless these bytes are what was stored, as far as that shows without a key."""
    if data.startswith(_MAGIC):
        _check(data, content_hash)
    else:
        bundles.from_stored(data, content_hash)


def checked_keys(given: object) -> list[str]:
    """Return the keys of a setting; raises InvalidError, whose text repeats no key."""
    one_by_one = [given] if isinstance(given, str | bytes) else given
    if not isinstance(one_by_one, list | tuple):
        raise InvalidError("code_keys is a list of keys, the newest first")
    keys = [getattr(key, "get_secret_value", lambda key=key: key)() for key in one_by_one]
    keys = [key.decode("latin-1") if isinstance(key, bytes) else key for key in keys]
    CodeKeys(keys)
    return keys


def new_key() -> str:
    """Return a random key, as text."""
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def _check(data: bytes, content_hash: str) -> None:
    if hashlib.sha256(data[:-_CHECK_BYTES]).digest() != data[-_CHECK_BYTES:]:
        raise Corrupt(f"the stored code {content_hash} is damaged: restore it from a copy")


def _raw(key: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(key)
    except (TypeError, ValueError, binascii.Error):
        raw = b""
    # Decoding passes over what it does not know.
    if len(raw) != _KEY_BYTES or base64.urlsafe_b64encode(raw).decode() != key:
        # The message does not repeat it.
        raise InvalidError(
            "a key in code_keys is 32 random bytes in base64, as"
            " `python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key()"
            ".decode())'` prints them"
        )
    return raw
