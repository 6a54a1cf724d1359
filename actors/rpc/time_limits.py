"""Time limits: waiting that ends, with an error that names what did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from dynamic_workflows.eventlog.errors import Unavailable

T = TypeVar("T")


async def within(limit_s: float | None, what: str, work: Awaitable[T]) -> T:
    """What comes back; Unavailable, with the name of `what`, after the limit."""
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Unavailable(
            f"{what} did not answer in {limit_s:g} s: look there, then try again"
        ) from error
