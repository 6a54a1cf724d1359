"""Billing with dunning: an invoice, a charge, and patience with cards that decline.

Two kinds of failure, two kinds of retry. A gateway that does not answer is tried again by the step
itself, within seconds. A card that declines is the customer's matter: a reminder, days of sleep,
and another round, until the account is suspended.
"""

from invoices import invoice

from dynamic_workflows import WorkflowEntrypoint

ROUNDS_MAX = 3


class CardDeclined(Exception):
    """The bank said no; trying again at once would not change that."""


class Gateway:
    """A payment gateway with the habits of a real one, decided by the card's name alone."""

    def __init__(self, card: str) -> None:
        self.kind, _, number = card.partition("-")
        self.number = int(number or 0)

    def charge(self, amount, *, key: str, dunning_round: int, attempt: int) -> dict:
        """Take the money, once for each key; raises CardDeclined or ConnectionError."""
        if self.kind == "slow" and attempt <= self.number:
            raise ConnectionError(f"the gateway did not answer (attempt {attempt})")
        if self.kind == "declines" and dunning_round <= self.number:
            raise CardDeclined("insufficient funds")
        return {"receipt": f"R-{key}", "amount": amount}


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        account = event.payload
        bill = await step.do("write the invoice", lambda: invoice(account))
        gateway = Gateway(account["card"])
        retries = {"limit": 4, "delay": self.env.GATEWAY_DELAY, "backoff": "exponential"}
        reminders = []

        for dunning_round in range(1, ROUNDS_MAX + 1):

            async def charge(ctx, dunning_round=dunning_round):
                try:
                    receipt = gateway.charge(
                        bill["total"],
                        key=f"{event.instance_id}-{dunning_round}",
                        dunning_round=dunning_round,
                        attempt=ctx.attempt,
                    )
                except CardDeclined as error:
                    return {"declined": str(error)}
                return {"paid": receipt}

            outcome = await step.do("charge the card", charge, config={"retries": retries})
            if "paid" in outcome:
                return {"status": "paid", **outcome["paid"], "reminders": len(reminders)}
            reminders.append(
                await step.do(
                    "remind the customer",
                    lambda outcome=outcome: (
                        f"{account['company']}: EUR {bill['total']} is open ({outcome['declined']})"
                    ),
                )
            )
            await step.sleep("give the customer time", self.env.DUNNING_DELAY)

        suspended = await step.do("suspend the account", lambda: {"account": account["company"]})
        return {
            "status": "suspended",
            **suspended,
            "open": bill["total"],
            "reminders": len(reminders),
        }
