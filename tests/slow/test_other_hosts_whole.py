"""Whole test files as on another system."""

from __future__ import annotations

import pytest
from elsewhere import file_of, passing_elsewhere


@pytest.mark.slow
async def test_isolates_start_work_keep_their_limits_and_end_as_on_linux() -> None:
    passed, skipped = await passing_elsewhere("tests/isolates/test_process.py")
    assert passed >= 38
    assert skipped <= 7


@pytest.mark.slow
async def test_everything_but_walls_and_reserved_blocks_is_as_on_linux() -> None:
    not_there = (
        "isolate_limits::test_imports_find_the_bundle_then_what_is_granted_and_nothing_else",
        "isolate_limits::test_the_walls_that_stand_are_in_the_status_and_the_answer_to_why",
        "contract::test_tenants_cannot_see_each_other",  # Their SQL needs a sandbox.
        "recovery::test_a_flipped_bit_behind_the_end_is_reported_and_costs_nothing",
        "wal_local::test_a_closed_log_gives_reserved_blocks_back",
    )
    files = "isolate_limits tails egress contract wal_local log recovery blobs".split()
    passed, _ = await passing_elsewhere(
        *map(file_of, files),
        *(f"--deselect={file_of(test)}" for test in not_there),
    )
    assert passed > 200
