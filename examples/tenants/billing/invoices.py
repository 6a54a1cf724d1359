"""Invoices: exact money from usage. Amounts are Decimals in euro, rounded at the end of a line."""

from decimal import ROUND_HALF_UP, Decimal

CENT = Decimal("0.01")
# Price of a unit up to and including this many, from the first unit on.
TIERS = [(1_000, Decimal("0.0200")), (10_000, Decimal("0.0125")), (None, Decimal("0.0080"))]
VAT = {"DE": Decimal("0.19"), "FR": Decimal("0.20"), "EE": Decimal("0.24")}


def cents(amount: Decimal) -> Decimal:
    """The amount, rounded to cents the way invoices are."""
    return amount.quantize(CENT, rounding=ROUND_HALF_UP)


def priced(units: int) -> Decimal:
    """What this many units cost, tier by tier."""
    total, start = Decimal(0), 0
    for end, price in TIERS:
        inside = units - start if end is None else max(0, min(units, end) - start)
        total += inside * price
        if end is None or units <= end:
            return total
        start = end
    return total


def invoice(account: dict) -> dict:
    """The month's invoice of an account."""
    lines = [
        {"text": f"{item['what']}, {item['units']:,} units", "net": cents(priced(item["units"]))}
        for item in account["usage"]
    ]
    lines.append({"text": f"plan {account['plan']}", "net": Decimal(account["plan_eur"])})
    net = sum((line["net"] for line in lines), Decimal(0))
    tax = cents(net * VAT[account["country"]])
    return {"lines": lines, "net": net, "tax": tax, "total": net + tax}
