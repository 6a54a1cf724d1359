"""Setup: what the actors of a platform are told; light, since each of them starts with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256

from ..claims import NumberedClaim
from ..settings.platform_config import PlatformConfig


@dataclass(frozen=True)
class Rule:
    """Whose `load` a loader follows."""

    fingerprint: str
    load_version: str | None
    driver: str
    has_callbacks: bool
    connected_at_us: int = 0
    """When the driver connected first; kept over recoveries."""


@dataclass(frozen=True)
class Setup:
    """What every actor of a platform is told; it travels to all of them."""

    log_root: str
    config: PlatformConfig
    namespace: str
    callbacks: bytes = b""
    """Pickle of (load, app)."""
    is_app: bool = False
    has_callbacks: bool = True
    """A command brings none, and leaves those that rule in place."""
    load_version: str | None = None
    driver: str = ""
    """Who brought them, for people."""
    connected_at_us: int = 0
    """When that driver connected first; rejoining after a recovery leaves it as it is."""
    claim: NumberedClaim | None = None
    """What says in the log's root that this platform is at work on it."""
    prefix: str = field(init=False)
    """Before the names of its actors: platforms on other logs do not meet them."""

    def __post_init__(self) -> None:
        digest = sha256(self.log_root.encode()).hexdigest()[:10]
        object.__setattr__(self, "prefix", f"dw-{digest}")

    @cached_property
    def fingerprint(self) -> str:
        """Equal for platforms that would decide alike."""
        told = self.callbacks + self.config.model_dump_json().encode()
        for key in self.config.code_keys:  # which the dump leaves out
            told += sha256(key.get_secret_value().encode()).digest()
        return sha256(told + repr(self.load_version).encode()).hexdigest()

    @property
    def rule(self) -> Rule:
        """What a loader with this setup follows."""
        return Rule(
            self.fingerprint,
            self.load_version,
            self.driver,
            self.has_callbacks,
            self.connected_at_us,
        )

    def without_callbacks(self) -> Setup:
        """What everybody but the loader is told."""
        return replace(self, callbacks=b"")

    def name(self, role: str) -> str:
        """The name of an actor."""
        return f"{self.prefix}-{role}"
