"""Isolate settings: the walls around a tenant's code, and what is within them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.units import MIB
from dynamic_workflows.loaders.isolates.interface import Limits
from dynamic_workflows.loaders.sandbox import isolate_uids


class IsolateSettings(BaseModel):
    """The walls around the code of a tenant, and its limits. In a file: the table `isolates`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    isolation: Literal["sandbox", "unsafe-none"] = "sandbox"
    """"sandbox" refuses to start where the walls are missing; "unsafe-none" builds no walls."""
    jail: Literal["auto", "require", "off"] = "auto"
    """Whether isolates get namespaces and a file system of their own."""
    memory_mb: int = Field(default=512, ge=16)
    """MiB of memory that one isolate may use."""
    turn_cpu_seconds: float = Field(default=0.5, gt=0)
    """CPU seconds of one turn of an isolate's event loop."""
    turn_wall_seconds: float = Field(default=5.0, gt=0)
    """Wall seconds of one turn of an isolate's event loop."""
    silent_cpu_seconds: float = Field(default=5.0, gt=0)
    """CPU seconds that an isolate may use without a message to its supervisor."""
    drop_grace_seconds: float = Field(default=5.0, gt=0)
    """Seconds that code may go on after it was told to end: its instance was paused, terminated or
    put to rest, its attempt timed out, its call was cancelled. Then its isolate is ended."""
    tail_replays: bool = False
    """Whether tails get what `run` prints in a replay as well, and printed before; such records
    are marked `replayed`."""
    call_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that a call of an entrypoint may take, what it starts included, and the loading of
    code in an isolate; then the call fails with `limit.exceeded` and is cancelled."""
    calls_in_flight_max: int = Field(default=10_000, ge=1)
    """Calls of bindings in an isolate that have no answer yet; further ones wait."""
    bytes_in_flight_max: int = Field(default=128 * MIB, ge=MIB)
    """Bytes of such calls, of one message, and of what an isolate leaves unread."""
    files_max: int = Field(default=64, ge=16)
    """Open files of one isolate, its own few included."""
    tmp_mb: int = Field(default=0, ge=0)
    """MiB of a private /tmp in memory; more than 0 needs the jail."""
    output_mb: int = Field(default=256, ge=1)
    """MiB of raw output of one isolate that had to be dropped; 8 MiB a second are forgiven."""
    messages_per_second_max: int = Field(default=20_000, ge=1_000)
    """Messages of one isolate in a second that nobody asked for: logs, repeated idleness."""
    isolates_max: int = Field(default=1, ge=1, le=256)
    """Isolates that one version of a tenant's code may have while it keeps them all busy."""
    isolate_idle_seconds: float = Field(default=30.0, gt=0)
    """Seconds without an instance or a call after which an isolate is closed."""
    warm_isolates: int = Field(default=1, ge=0)
    """Blank isolates that a tenant actor keeps ready."""
    isolate_uids_first: int = Field(default=isolate_uids.FIRST, ge=0, le=isolate_uids.FIRST_MAX)
    """Where the platform is root, each isolate becomes a user of its own: this number plus that of
    its process. So 4,194,304 of them, which must be nobody else's; 0: all become 65534."""
    threads: bool = False
    """Whether sync callbacks run in worker threads of the isolate."""

    def limits(self, lower: Mapping[str, int] | None = None) -> Limits:
        """What one isolate may use; of this and `lower` (memory_mb, cpu_ms), the lower holds."""
        lower = lower or {}
        cpu_ms = round(self.turn_cpu_seconds * 1000)
        return Limits(
            memory_mb=min(self.memory_mb, lower.get("memory_mb", self.memory_mb)),
            turn_cpu_ms=min(cpu_ms, lower.get("cpu_ms", cpu_ms)),
            turn_wall_ms=round(self.turn_wall_seconds * 1000),
            silent_cpu_ms=round(self.silent_cpu_seconds * 1000),
            calls_in_flight_max=self.calls_in_flight_max,
            bytes_in_flight_max=self.bytes_in_flight_max,
            files_max=self.files_max,
            tmp_mb=self.tmp_mb,
            output_mb=self.output_mb,
            messages_per_second_max=self.messages_per_second_max,
        )
