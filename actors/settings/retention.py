"""Retention: how long ended instances are kept."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from dynamic_workflows.loaders.sdk import durations


class Retention(BaseModel):
    """How long ended instances are kept: durations, as a number of ms, text, or a timedelta."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    success: Any = "30 days"
    """After `complete`."""
    error: Any = "30 days"
    """After `errored` and `terminated`."""

    @field_validator("success", "error")
    @classmethod
    def _is_a_duration(cls, value: object) -> object:
        durations.parse_ms(value)
        return value
