"""What an application must satisfy: facts that can be checked without asking anybody."""

import re

EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
COUNTRIES = {"AT", "BE", "DE", "EE", "ES", "FR", "IT", "NL", "PT", "SE"}
IBAN_LENGTHS = {"AT": 20, "BE": 16, "DE": 22, "EE": 20, "ES": 24, "FR": 27, "IT": 27, "NL": 18}


def iban_is_valid(text: str) -> bool:
    """The check digits of an account number (ISO 13616), by the remainder of 97."""
    iban = text.replace(" ", "").upper()
    if not iban.isalnum() or len(iban) != IBAN_LENGTHS.get(iban[:2], len(iban)):
        return False
    digits = "".join(str(int(letter, 36)) for letter in iban[4:] + iban[:4])
    return int(digits) % 97 == 1


def problems(application: dict) -> list[str]:
    """What makes the application impossible to accept, in words for the applicant."""
    found = []
    if not application.get("company", "").strip():
        found.append("the company has no name")
    if not EMAIL.fullmatch(application.get("email", "")):
        found.append("the e-mail address is not one")
    if application.get("country") not in COUNTRIES:
        found.append("the country is not served")
    if not iban_is_valid(application.get("iban", "")):
        found.append("the account number has a typing error")
    return found


def risk(application: dict) -> dict:
    """A score from 0 (none) to 100, with the reasons that made it."""
    reasons = []
    if application["iban"][:2] != application["country"]:
        reasons.append((30, "the bank is in another country"))
    if application["expected_monthly_eur"] > 50_000:
        reasons.append((40, "more than 50,000 EUR a month"))
    if application["employees"] < 2:
        reasons.append((15, "one person alone"))
    return {
        "score": sum(points for points, _ in reasons),
        "reasons": [reason for _, reason in reasons],
    }
