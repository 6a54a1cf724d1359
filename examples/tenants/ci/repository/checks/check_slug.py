"""Checks of slugs."""

from textkit import slug


def check_that_accents_go():
    assert slug("Crème brûlée, twice") == "creme-brulee-twice"


def check_that_nothing_stays_nothing():
    assert slug("…") == ""


def check_that_a_slug_is_its_own_slug():
    assert slug(slug("Rock & Roll 1956")) == slug("Rock & Roll 1956")
