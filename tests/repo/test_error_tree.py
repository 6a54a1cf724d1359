"""The tree of errors is drawn where they are defined, as they are."""

from __future__ import annotations

import re

from dynamic_workflows.eventlog import errors


def test_the_drawing_of_the_errors_is_their_hierarchy() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)(\w+)", line)
        if found:
            path[len(found[1]) // 4 :] = [found[2]]
            drawn[found[2]] = path[-2] if len(path) > 1 else "Exception"
    defined = {
        name: kind.__base__.__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, errors.WorkflowsError)
        and kind.__base__ is not None
    }
    assert drawn == defined
