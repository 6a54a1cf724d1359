"""The bounded dict, beside a list of what was set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.eventlog.bounded_dict import BoundedDict

KEYS = st.integers(0, 12)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["set", "setdefault", "update", "pop", "get"]), KEYS),
    ),
    max_size=80,
)


@given(st.integers(1, 8), CHANGES)
def test_it_holds_what_was_set_last_and_never_more(
    most: int, changes: list[tuple[str, int]]
) -> None:
    bounded: BoundedDict[int, int] = BoundedDict(most)
    order: list[int] = []
    for number, (change, key) in enumerate(changes):
        match change:
            case "set":
                bounded[key] = number
            case "update":
                bounded.update({key: number})
            case "setdefault":
                bounded.setdefault(key, number)
            case "pop":
                bounded.pop(key, None)
            case "get":
                bounded.get(key)
        if change in ("set", "update", "pop") or (change == "setdefault" and key not in order):
            order = [one for one in order if one != key] + ([key] if change != "pop" else [])
        order = order[-most:]
        assert list(bounded) == order
