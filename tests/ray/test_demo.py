"""The four example tenants: what they answer, what SQL says of them, and the demo on real Ray."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import types
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from demo_runs import ARTIFACT, EXAMPLES, demo_command

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.eventlog import connect_duckdb

# With a virtual clock nobody has to pretend that days are seconds.
PATIENCE = {
    "onboarding": {"DECISION_TIMEOUT": "7 days", "FIRST_DAY": "1 day"},
    "agent": {"APPROVAL_TIMEOUT": "7 days"},
    "ci": {"RETRY_DELAY": "30 seconds"},
    "billing": {"GATEWAY_DELAY": "1 minute", "DUNNING_DELAY": "3 days"},
}


@pytest.fixture
def demo_run(tmp_path: Path) -> list[str]:
    return demo_command(tmp_path)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("demo")
    for tenant, grants in PATIENCE.items():
        monkeypatch.setitem(module.GRANTS, tenant, grants)
    return module


@pytest.fixture(params=[False, True], ids=["undisturbed", "crash at every step"])
async def platform(demo: types.ModuleType, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    async with testing.connect(
        load=demo.load, auto_advance=True, crash_at_every_step=request.param
    ) as deployed:
        yield deployed


async def submit(platform: Any, demo: types.ModuleType, tenant: str) -> dict[str, Any]:
    """Create all of a tenant's work; its instances by id."""
    made = await platform.tenant(tenant).workflows.create_batch(demo.work(tenant))
    return {instance.id: instance for instance in made}


async def test_onboarding_opens_asks_or_refuses(platform: Any, demo: types.ModuleType) -> None:
    made = await submit(platform, demo, "onboarding")
    await made["atlas-trading"].send_event("decision", {"approved": True, "by": "Ines"})
    small = await made["tea-house"].result()
    assert small["risk"] == 0
    assert re.fullmatch(r"C-\d{8}", small["account"])
    assert small["account"] in small["letter"]
    large = await made["atlas-trading"].result()
    assert (large["risk"], large["approved_by"]) == (70, "Ines")
    with pytest.raises(dw.WorkflowFailedError, match="typing error") as refused:
        await made["typo-and-sons"].result()
    assert refused.value.name == "NonRetryableError"


async def test_a_refusal_by_a_person_is_the_tenants_own_error(
    platform: Any, demo: types.ModuleType
) -> None:
    made = await submit(platform, demo, "onboarding")
    answer = {"approved": False, "by": "Ines", "reason": "no papers"}
    await made["atlas-trading"].send_event("decision", answer)
    with pytest.raises(dw.WorkflowFailedError, match="no papers") as refused:
        await made["atlas-trading"].result()
    assert refused.value.name == "ApplicationRefused"


async def test_the_agent_runs_its_plan_and_asks_before_it_publishes(
    platform: Any, demo: types.ModuleType
) -> None:
    report = (await submit(platform, demo, "agent"))["rent-report"]
    await report.send_event("approval", {"approved": True, "by": "Grace"})
    output = await report.result()
    assert output["calls"] == 7
    assert output["answer"]["text"].splitlines() == [
        "# What our offices cost",
        "- a year: EUR 258,366.00",
        "- a desk, a month: EUR 179.42",
    ]
    steps = await platform_steps(platform, "agent", "rent-report")
    assert "258366.00" in steps["calculate: year"]


async def platform_steps(platform: Any, tenant: str, instance_id: str) -> dict[str, str]:
    """The recorded outputs of an instance, by step."""
    rows = platform.query(
        "select step, output from steps where tenant_id = ? and instance_id = ?",
        [tenant, instance_id],
    )
    return {row["step"]: row["output"] for row in rows.to_pylist()}


async def test_the_agent_stops_where_a_person_says_no(
    platform: Any, demo: types.ModuleType
) -> None:
    report = (await submit(platform, demo, "agent"))["rent-report"]
    await report.send_event("approval", {"approved": False, "by": "Grace"})
    output = await report.result()
    assert (output["stopped_at"], output["by"]) == ("sent", "Grace")
    assert "publish: sent" not in await platform_steps(platform, "agent", "rent-report")


async def test_a_repository_runs_its_own_pipeline(platform: Any, demo: types.ModuleType) -> None:
    push = (await submit(platform, demo, "ci"))["push-4f1c"]
    assert await push.result() == {
        "commit": "4f1c",
        "jobs": ["build", "lint", "mirror", "release", "unit"],
        "checks": 6,
        "remarks": ["textkit/wrap.py:8 is not finished"],
        "artifact": ARTIFACT,
        "notes": "7 files, 67 lines of Python",
    }
    attempts = platform.query(
        "select attempt, error_name from attempts where step = 'mirror' order by attempt"
    ).to_pylist()
    assert [row["attempt"] for row in attempts] == [1, 2, 3]
    assert attempts[-1]["error_name"] is None
    # A crash cuts off what runs beside it: such an attempt is known, and takes its number.
    assert {row["error_name"] for row in attempts[:-1]} <= {
        "ConnectionError",
        "WorkflowInternalError",
    }


async def test_billing_is_patient_and_exact(platform: Any, demo: types.ModuleType) -> None:
    made = await submit(platform, demo, "billing")
    outputs = {name: await instance.result() for name, instance in made.items()}
    assert outputs["2026-03-harbour"]["amount"] == Decimal("258.83")
    assert [(output["status"], output["reminders"]) for output in outputs.values()] == [
        ("paid", 0),
        ("paid", 0),
        ("paid", 1),
        ("suspended", 3),
    ]
    assert outputs["2026-03-vagabond"]["open"] == Decimal("12.54")


async def test_sql_tells_the_same_story(demo: types.ModuleType) -> None:
    async with testing.connect(load=demo.load, auto_advance=True) as platform:
        made = [
            one for tenant in PATIENCE for one in (await submit(platform, demo, tenant)).values()
        ]
        for instance in made:
            if event_type := {"atlas-trading": "decision", "rent-report": "approval"}.get(
                instance.id
            ):
                await instance.send_event(event_type, demo.ANSWERS[event_type])
        for instance in made:
            try:
                await instance.result()
            except dw.WorkflowFailedError:
                assert instance.id == "typo-and-sons"

        tables = {title: platform.query(sql).to_pylist() for title, sql in demo.SUMMARY.items()}
    instances, slowest, failed, twice, owners = tables.values()
    counted = {(row["tenant"], row["status"]): row["instances"] for row in instances}
    assert counted == {
        ("agent", "complete"): 1,
        ("billing", "complete"): 4,
        ("ci", "complete"): 1,
        ("onboarding", "complete"): 2,
        ("onboarding", "errored"): 1,
    }
    # The flaky job waited twice for the mirror, the slow card twice for its gateway.
    assert {row["step"] for row in slowest[:2]} == {"mirror", "charge the card"}
    assert {(row["tenant"], row["step"], row["error"]) for row in failed} == {
        ("billing", "charge the card", "ConnectionError"),
        ("ci", "mirror", "ConnectionError"),
        ("onboarding", "check the application", "NonRetryableError"),
    }
    assert [row["twice"] for row in twice] == [0]
    assert [row["owners"] for row in owners] == [1, 1, 1, 1]


@pytest.mark.ray
def test_the_demo_survives_its_kill_and_goes_on_from_the_same_log(
    demo_run: list[str], tmp_path: Path
) -> None:
    first = subprocess.run(demo_run, capture_output=True, text=True, timeout=120, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "kill -9" in first.stdout
    assert "\x1b" not in first.stdout, "without a terminal there are no colours"

    with connect_duckdb(tmp_path / "log") as log:
        ended = dict(log.sql("select status, count(*) from instances group by 1").fetchall())
        assert ended == {"complete": 8, "errored": 1}
        repeated = log.sql(
            "select instance_id, step, count from events where type = 'step_completed' "
            "group by all having count(*) > 1"
        ).fetchall()
        assert repeated == []
        (owners,) = log.sql("select max(epoch) from events where tenant_id = 'ci'").fetchall()[0]
        assert owners >= 2
        (artifact,) = log.sql(
            "select output ->> '$.artifact' from instances where tenant_id = 'ci'"
        ).fetchall()[0]
        assert artifact == ARTIFACT


@pytest.mark.ray
@pytest.mark.parametrize("line", ["starting Ray", "created"])
def test_a_key_ends_the_demo_in_one_line_whatever_it_is_doing(
    demo_run: list[str], line: str
) -> None:
    with subprocess.Popen(
        demo_run,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while line not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: all of them hear it
        _, errors = process.communicate(timeout=60)
    assert errors.split() == interrupt_line().split()
    assert process.returncode == 128 + signal.SIGINT


def interrupt_line() -> str:
    source = (EXAMPLES / "demo_interrupt.py").read_text(encoding="utf-8")
    return str(re.search(r'^LINE = "(.*)"$', source, re.MULTILINE).group(1))  # type: ignore[union-attr]
