"""Setup: what the actors of a platform are told; light, since each of them starts with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256

from .config import PlatformConfig


@dataclass(frozen=True)
class Setup:
    """What every actor of a platform is told; it travels to all of them."""

    log_root: str
    config: PlatformConfig
    namespace: str
    callbacks: bytes = b""
    """Pickle of (load, app)."""
    is_app: bool = False
    prefix: str = field(init=False)
    """Before the names of its actors: platforms on other logs do not meet them."""

    def __post_init__(self) -> None:
        digest = sha256(self.log_root.encode()).hexdigest()[:10]
        object.__setattr__(self, "prefix", f"dw-{digest}")

    @cached_property
    def fingerprint(self) -> str:
        """Equal for platforms that would decide alike."""
        told = self.callbacks + self.config.model_dump_json().encode()
        return sha256(told).hexdigest()

    def without_callbacks(self) -> Setup:
        """What everybody but the loader is told."""
        return replace(self, callbacks=b"")

    def name(self, role: str) -> str:
        """The name of an actor."""
        return f"{self.prefix}-{role}"
