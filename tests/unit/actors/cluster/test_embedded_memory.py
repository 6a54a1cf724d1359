"""What tenant actors declare to Ray, and for how many of them an embedded Ray has room."""

from __future__ import annotations

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import embedded_memory
from dynamic_workflows.actors.cluster.embedded_memory import (
    MIB,
    offered,
    tenants_that_fit,
    total_memory,
)

GIB = 1024 * MIB


def test_a_laptop_has_room_for_as_many_tenants_as_usually_fit() -> None:
    reserved = 456 * MIB
    fit = {size: tenants_that_fit(size * GIB, reserved) for size in (1, 4, 8, 16, 64)}
    assert fit == {1: 4, 4: 24, 8: 52, 16: 110, 64: 454}


def test_what_is_offered_holds_them_whatever_each_declares() -> None:
    for declared in (100 * MIB, 1024 * MIB, 5_000 * MIB):
        memory = offered(declared, supervisors=200 * MIB, object_store=256 * MIB)
        tenants = tenants_that_fit(total_memory(), 456 * MIB)
        assert (memory - 200 * MIB) // declared == tenants


def test_the_machine_has_no_more_than_its_container() -> None:
    assert 64 * MIB < total_memory() < 1_000_000 * GIB
    assert embedded_memory.USUAL_TENANT_MEMORY < dw.PlatformConfig().tenant_memory_mb * MIB
