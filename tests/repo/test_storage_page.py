"""The page on storage names variables that the client of object stores knows."""

from __future__ import annotations

import re
from pathlib import Path

import obstore.store
import pytest
from paths import DOCS

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.store.locations import BUCKETS, root_of

PAGE = (DOCS / "storage.md").read_text()
VARIABLE = re.compile(r"\b(?:AWS|AZURE|GOOGLE)_[A-Z0-9_]+\b")


def test_every_variable_on_the_page_is_known_to_the_client_of_object_stores() -> None:
    folder = Path(obstore.store.__file__).parent
    known = {name for stub in folder.rglob("*.pyi") for name in VARIABLE.findall(stub.read_text())}
    named = set(VARIABLE.findall(PAGE))
    assert len(named) > 15
    assert named <= known


@pytest.mark.parametrize("scheme", BUCKETS)
def test_every_scheme_that_is_taken_is_on_the_page(scheme: str) -> None:
    assert f"`{scheme}://" in PAGE
    assert root_of(f"{scheme}://bucket/prefix/") == f"{scheme}://bucket/prefix"


def test_a_password_in_a_place_is_refused_as_the_page_says() -> None:
    with pytest.raises(InvalidError, match="credentials come from the environment"):
        root_of("s3://key:secret@bucket/prefix")
