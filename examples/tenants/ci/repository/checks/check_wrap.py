"""Checks of wrapping."""

from textkit import wrap

TEXT = "a workflow that sleeps for thirty days holds no memory at all"


def check_that_no_line_is_too_long():
    assert all(len(line) <= 16 for line in wrap(TEXT, 16))


def check_that_no_word_is_lost():
    for width in range(1, 80):
        assert " ".join(wrap(TEXT, width)) == TEXT
