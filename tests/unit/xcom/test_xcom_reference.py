"""Is what the database holds instead of a value never taken for a value, nor a value for it?"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.xcom.reference import (
    MARK,
    ForeignReferenceError,
    Reference,
    is_marked,
    new_path,
)

REFERENCE = Reference("list", 100, "xcom/d/r/t/-1/k.0.json.gz", "json", "gzip", 60, "ab" * 32)


def test_a_reference_survives_the_database() -> None:
    value = json.loads(json.dumps(REFERENCE.to_value()))
    assert Reference.from_value(value) == REFERENCE
    assert is_marked(value)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"path": "xcom/a"}, [REFERENCE.to_value()]])
def test_values_are_no_references(value: object) -> None:
    assert Reference.from_value(value) is None


@pytest.mark.parametrize(
    "change",
    [
        {MARK: 2},
        {MARK: None},
        {"path": "logs/x"},
        {"path": "xcom/../logs/x"},
        {"path": 3},
        {"path": "xcom"},
    ],
)
def test_foreign_references_are_told(change: dict[str, object]) -> None:
    with pytest.raises(ForeignReferenceError, match="another release"):
        Reference.from_value({**REFERENCE.to_value(), **change})
    with pytest.raises(ForeignReferenceError, match="another release"):
        Reference.from_value({MARK: 1})


@given(st.text(), st.text(), st.text(), st.integers(-1, 10_000), st.text())
def test_paths_stay_below_their_task(dag: str, run: str, task: str, index: int, key: str) -> None:
    path = new_path(dag, run, task, index, key)
    folder, *segments = path.split("/")
    assert folder == "xcom" and len(segments) == 5 and segments[3] == str(index)
    assert not {"", ".", ".."} & set(segments)
    assert all(len(segment.encode()) <= 250 for segment in segments)
    assert path != new_path(dag, run, task, index, key)
