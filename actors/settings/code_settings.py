"""Code settings: how tenants' code is loaded, and how it is stored."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from dynamic_workflows.eventlog.units import MIB
from dynamic_workflows.loaders.bundles.code_keys import CodeKeys, checked_keys


class CodeSettings(BaseModel):
    """How the code of tenants is loaded and stored. In a file: the table `code`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code_ttl_seconds: float = Field(default=60.0, ge=0)
    """Seconds that the loader holds what `load` answered, of the platform's clock."""
    load_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that `load` may take to answer; then it has failed (`code.load_failed`)."""
    packages: tuple[str, ...] = ()
    """Installed packages that tenant code may import beside the standard library."""
    modules_bytes_max: int = Field(default=64 * MIB, ge=1, le=64 * MIB)
    """Bytes of the modules of one bundle; more is refused with `code.invalid`."""
    code_keys: tuple[SecretStr, ...] = ()
    """Keys that encrypt stored code with its `env` and props, newest first; none: in the open."""

    @field_validator("code_keys", mode="before")
    @classmethod
    def _are_keys(cls, value: object) -> object:
        return tuple(SecretStr(key) for key in checked_keys(value))

    def keys(self) -> CodeKeys:
        """The keys of stored code."""
        return CodeKeys([key.get_secret_value() for key in self.code_keys])
