"""SQL over logs in object stores: the same answers, by ranges of bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import servers
from histories import Writer, opened

from dynamic_workflows.eventlog import connect_duckdb
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Unavailable
from dynamic_workflows.eventlog.log.event_log import LogConfig
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.open_store import open_store

_roots = itertools.count()


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with servers.s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def azure() -> Iterator[dict[str, str]]:
    if (reason := servers.azurite_missing()) is not None:
        pytest.skip(reason)
    with servers.azure_server() as environment:
        yield environment


@pytest.fixture(params=["s3", "azure"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in request.getfixturevalue(request.param).items():
        monkeypatch.setenv(name, value)
    scheme = {"s3": "s3", "azure": "az"}[request.param]
    return f"{scheme}://bucket/query-{next(_roots)}"


async def test_a_bucket_that_is_missing_is_said_to_be(root: str) -> None:
    reader = Reader(root.replace("bucket", "nowhere"))
    with pytest.raises(Unavailable, match="create the bucket"):
        reader.query("select count(*) from events")
    reader.close()


async def test_log_in_an_object_store_is_read_hot_and_cold(root: str) -> None:
    clock = VirtualClock()
    config = LogConfig(auto_seal=False, compaction=CompactionConfig(fan_in=2, grace_s=0))
    store = open_store(root)
    platform, tenant = Reader(root), Reader(root, tenant="acme")
    async with (
        opened(store, "acme", clock=clock, config=config) as log,
        opened(store, "other", clock=clock) as other,
    ):
        await other.append(Writer(clock, "hidden").life())
        for number in range(5):
            await log.append(Writer(clock, f"id-{number}").life(output=number))
            if number % 2:
                await log.seal()
            if number == 3:
                await log.maintain()
            sql = "select count(*) as n, count(distinct seq) as d from events where tenant_id = ?"
            expected = [{"n": 7 * (number + 1), "d": 7 * (number + 1)}]
            assert platform.query(sql, ["acme"]).to_pylist() == expected
            assert tenant.query(sql, ["acme"]).to_pylist() == expected
        assert tenant.query(sql, ["other"]).to_pylist() == [{"n": 0, "d": 0}]
        with connect_duckdb(root) as connection:
            found = connection.sql(
                "select output from instances where instance_id = 'id-2' or instance_id = 'id-4'"
                " order by 1"
            )
            assert found.fetchall() == [("2",), ("4",)]
    platform.close()
    tenant.close()
    await store.close()
