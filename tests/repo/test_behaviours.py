"""The table of behaviours says what the tests say."""

from behaviours import LAST, TABLE, held, not_built, render


def test_the_table_of_behaviours_is_what_the_tests_say() -> None:
    assert TABLE.read_text() == render(), "run: python tests/support/behaviours.py"


def test_no_behaviour_is_both_held_and_not_built() -> None:
    assert not set(held()) & set(not_built())


def test_every_number_is_one_of_ours() -> None:
    assert set(held()) | set(not_built()) <= set(range(1, LAST + 1))
