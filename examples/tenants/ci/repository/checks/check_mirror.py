"""A check that depends on a mirror which sleeps: the first ones who ask get no answer."""

import textkit


def check_that_the_mirror_serves_us(attempt):
    if attempt < 3:
        raise ConnectionError("the mirror did not answer")
    assert textkit.slug("Mirror") == "mirror"
