"""Customer onboarding: check, weigh, let a person decide where that is needed, open the account."""

import hashlib

from checks import problems, risk

from dynamic_workflows import NonRetryableError, WorkflowEntrypoint

RISK_MAX = 25


class ApplicationRefused(Exception):
    """A person said no; the reason is the message."""


def account_number(application: dict) -> str:
    """The same application gives the same number, so that opening twice opens one account."""
    digest = hashlib.sha256(f"{application['company']}|{application['iban']}".encode())
    return f"C-{int(digest.hexdigest()[:10], 16) % 10**8:08d}"


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        application = event.payload

        @step.do("check the application")
        async def checked(ctx):
            found = problems(application)
            if found:
                raise NonRetryableError("; ".join(found))
            return {"company": application["company"].strip(), "country": application["country"]}

        customer = await checked()
        weighed = await step.do("weigh the risk", lambda: risk(application))
        approved_by = "rules"
        if weighed["score"] > RISK_MAX:
            decision = await step.wait_for_event(
                "a person decides", type="decision", timeout=self.env.DECISION_TIMEOUT
            )
            if not decision.payload["approved"]:
                raise ApplicationRefused(decision.payload["reason"])
            approved_by = decision.payload["by"]

        async def close_account(undo):
            return f"closed {undo.output['account']}"

        account = await step.do(
            "open the account",
            lambda: {"account": account_number(application), "currency": "EUR"},
            rollback=close_account,
        )
        await step.sleep("let the first day pass", self.env.FIRST_DAY)
        letter = await step.do(
            "write the welcome letter",
            lambda: (
                f"Dear {customer['company']}, your account {account['account']} is open. "
                f"Approved by {approved_by}."
            ),
        )
        return {**account, "risk": weighed["score"], "approved_by": approved_by, "letter": letter}
