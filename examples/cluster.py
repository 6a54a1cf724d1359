"""Start the platform on the Ray cluster this machine belongs to, and leave it running there.

    python examples/cluster.py s3://bucket/prefix

The actors are detached: they outlive this program, and running it again finds them.
"""

from __future__ import annotations

import asyncio
import sys

import dynamic_workflows as dw


async def main(log: str) -> None:
    """Join the cluster, see that the platform answers, and go."""
    async with dw.connect(log, address="auto") as platform:
        tenants = platform.query("select count(distinct tenant_id) from instances")
        print(f"running on {log}, {tenants.column(0)[0]} tenants in the log")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
