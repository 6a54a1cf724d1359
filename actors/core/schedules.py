"""Schedules: the cron expressions of a tenant, and their firings."""

from __future__ import annotations

from dynamic_workflows.eventlog.clock import to_datetime
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import LimitExceededError
from dynamic_workflows.eventlog.events import Row, span

from ..instances.cron import check_cron, firing_id, missed, next_us
from ..instances.deadlines import Deadline
from ..instances.decisions import CreateItem, Decision
from ..instances.identifiers import check_workflow_name
from ..instances.row_payloads import Body, Scheduled, ScheduleFired, encode
from .creation import Creation
from .state import CRON, CoreState


class CronSchedule:
    """One cron expression of one workflow."""

    __slots__ = ("code_hash", "cron", "is_declared", "last_us", "pin", "timer", "workflow")

    def __init__(self, workflow: str, body: Scheduled, code_hash: str | None, at_us: int) -> None:
        self.workflow = workflow
        self.cron = body.cron
        self.pin = body.pin
        self.is_declared = body.declared
        """The tenant's code declares it: it is removed when the code no longer does."""
        self.code_hash = code_hash
        self.last_us = at_us
        """Epoch microseconds at which it fired last, or was set."""
        self.timer: Deadline | None = None

    def differs(self, body: Scheduled, code_hash: str) -> bool:
        """Whether it would be another one with these."""
        mine = (self.pin, self.is_declared, self.code_hash)
        return mine != (body.pin, body.declared, code_hash)


class Schedules:
    """Holds the tenant's schedules, and creates an instance at each firing."""

    def __init__(self, state: CoreState, creation: Creation) -> None:
        self._state = state
        self._creation = creation
        self._config = state.config
        self._schedules: dict[tuple[str, str], CronSchedule] = {}
        self._dismissed: set[tuple[str, str]] = set()
        """(workflow, cron) that a call has removed: what the code declares does not count there."""

    def set_schedules(
        self,
        workflow: str,
        crons: list[str],
        *,
        code_hash: str,
        pin: str = "latest",
        is_declared: bool = False,
        now_us: int,
    ) -> Decision:
        """Let the workflow fire at exactly these cron expressions (UTC) from now on.

        What the code declares and what was asked for by a call are apart: neither removes the
        other's. An expression that is both belongs to the call. What `remove_schedule` has removed
        stays removed as long as the code goes on declaring it, or until a call sets it.

        Above `schedules_max` a call raises LimitExceededError, and of what the code declares the
        first in order hold.
        """
        check_workflow_name(workflow)
        wanted = {check_cron(cron) for cron in crons}
        wanted = self._admitted(workflow, wanted, is_declared=is_declared)
        d = Decision(durable=True)
        if is_declared:
            dismissed = {cron for name, cron in self._dismissed if name == workflow}
            for cron in sorted(dismissed - wanted):
                # The declaration is gone, and a later one is a new one.
                self._note(d, "schedule_removed", workflow, Scheduled(cron), None, now_us)
            wanted -= dismissed
        for cron in sorted(set(self.crons(workflow, is_declared=is_declared)) - wanted):
            self._note(d, "schedule_removed", workflow, Scheduled(cron), None, now_us)
        for cron in sorted(wanted):
            known = self._schedules.get((workflow, cron))
            is_mine = is_declared and (known is None or known.is_declared)
            body = Scheduled(cron, pin, is_mine)
            if known is None or known.differs(body, code_hash):
                self._note(d, "schedule_set", workflow, body, code_hash, now_us)
        self.arm_all()
        return d

    def _admitted(self, workflow: str, wanted: set[str], *, is_declared: bool) -> set[str]:
        mine = {(workflow, cron) for cron in self.crons(workflow, is_declared=is_declared)}
        room = self._config.schedules_max - len(self._schedules.keys() - mine)
        fresh = sorted(cron for cron in wanted if (workflow, cron) not in self._schedules)
        known = len(wanted) - len(fresh)
        if len(fresh) + known <= room:
            return wanted
        if is_declared:
            return wanted - set(fresh[max(room - known, 0) :])
        raise LimitExceededError(
            f"tenant {self._state.tenant_id!r} may have {self._config.schedules_max:,} schedules "
            "(schedules_max): remove one first",
            retry_after=60.0,
            limit="schedules_max",
        )

    def remove_schedule(self, workflow: str, cron: str, *, now_us: int) -> Decision:
        """No more firings of this expression, whether a call had set it or the code declares it."""
        d = Decision(durable=True)
        if (workflow, cron) in self._schedules:
            body = Scheduled(cron, stays=True)
            self._note(d, "schedule_removed", workflow, body, None, now_us)
        return d

    def crons(self, workflow: str, *, is_declared: bool) -> list[str]:
        """The expressions of a workflow that its code declared, or those set by a call."""
        return [
            one.cron
            for one in self._schedules.values()
            if one.workflow == workflow and one.is_declared == is_declared
        ]

    def declared(self) -> set[str]:
        """The workflows for which code has, or may have, declared schedules."""
        declared = {one.workflow for one in self._schedules.values() if one.is_declared}
        return declared | {workflow for workflow, _ in self._dismissed}

    def schedules(self) -> list[tuple[str, str, int | None]]:
        """(workflow, cron, next firing) of each schedule."""
        return [
            (one.workflow, one.cron, next_us(one.cron, one.last_us))
            for one in self._schedules.values()
        ]

    def note(
        self, kind: str, payload: bytes | None, *, code_hash: str | None, now_us: int
    ) -> Decision:
        """A row about the tenant itself, like code_deployed: it takes its place in the order."""
        d = Decision(durable=True)
        self._tenant_row(d, kind, "", payload, code_hash, now_us)
        return d

    def _note(
        self,
        d: Decision,
        kind: str,
        workflow: str,
        body: Body,
        code_hash: str | None,
        now_us: int,
    ) -> None:
        row = self._tenant_row(d, kind, workflow, encode(body), code_hash, now_us)
        self.take_in(row, body)

    def _tenant_row(
        self,
        d: Decision,
        kind: str,
        workflow: str,
        payload: bytes | None,
        code_hash: str | None,
        now_us: int,
    ) -> Row:
        row = Row(
            type=kind,
            workflow=workflow,
            instance_id="",
            ts=now_us,
            payload=payload,
            code_hash=code_hash,
            seq=self._state.last_seq + 1,
        )
        self._state.last_seq += span(row)
        d.rows.append(row)
        return row

    def take_in(self, row: Row, body: Body | None) -> None:
        """Fold a row about the tenant itself into the schedules."""
        if isinstance(body, ScheduleFired):
            fired = self._schedules.get((row.workflow, body.cron))
            if fired is not None:
                fired.last_us = body.scheduled_us
        elif isinstance(body, Scheduled):
            old = self._schedules.pop((row.workflow, body.cron), None)
            if old is not None and old.timer is not None:
                self._state.timers.cancel(old.timer)
            self._dismissed.discard((row.workflow, body.cron))
            if body.stays:
                self._dismissed.add((row.workflow, body.cron))
            if row.type == "schedule_set":
                at_us = row.ts if old is None else old.last_us
                new = CronSchedule(row.workflow, body, row.code_hash, at_us)
                self._schedules[row.workflow, body.cron] = new

    def arm_all(self) -> None:
        """Arm the timer of every schedule for its next firing."""
        for schedule in self._schedules.values():
            self._arm(schedule)

    def _arm(self, schedule: CronSchedule) -> None:
        if schedule.timer is not None:
            self._state.timers.cancel(schedule.timer)
        due_us = next_us(schedule.cron, schedule.last_us)
        schedule.timer = None if due_us is None else self._state.timers.arm(due_us, CRON, schedule)

    def fire(self, d: Decision, schedule: CronSchedule, now_us: int) -> None:
        """Create the instance of the latest firing that is due. Earlier ones create none; the
        instance's `schedule` says how many."""
        schedule.timer = None
        due_us = next_us(schedule.cron, schedule.last_us)
        if due_us is None:
            return
        scheduled_us, left_out = missed(schedule.cron, due_us, now_us)
        fired = ScheduleFired(schedule.cron, scheduled_us, left_out)
        item = CreateItem(
            workflow=schedule.workflow,
            instance_id=firing_id(schedule.cron, scheduled_us),
            params=b"{}",
            code_hash=schedule.code_hash or "",
            pin=schedule.pin,
            trigger="cron",
            schedule=values.encode(
                {
                    "cron": schedule.cron,
                    "scheduled_time": to_datetime(scheduled_us),
                    "scheduled_us": scheduled_us,
                    "missed": left_out,
                }
            ),
        )
        self._note(d, "timer_fired", schedule.workflow, fired, None, now_us)
        d.durable = True
        is_full = len(self._state.index) >= self._config.instances_max
        if (item.workflow, item.instance_id) not in self._state.index and not is_full:
            self._creation.create_one(d, item, now_us)
        self._arm(schedule)
