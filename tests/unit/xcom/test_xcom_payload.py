"""Does a value come back from its file, and only from the right one?"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.xcom import payload
from airflow_provider_modal.xcom.payload import COMPRESSED_FROM, DamagedXComError, Packed
from airflow_provider_modal.xcom.reference import Reference

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def _reference(packed: Packed) -> Reference:
    return Reference(
        "x",
        packed.bytes,
        f"xcom/x{packed.suffix}",
        packed.encoding,
        packed.compression,
        packed.stored_bytes,
        packed.sha256,
    )


def _loaded(packed: Packed) -> object:
    reference = _reference(packed)
    with payload.checked_copy(reference, [packed.local.read_bytes()]) as copy:
        return payload.load(reference, copy)


@given(JSON)
def test_json_comes_back(value: object) -> None:
    text = json.dumps(value)
    with payload.json_file(text) as packed:
        assert (packed.bytes, packed.suffix) == (len(text), ".json")
        assert _loaded(packed) == value


def test_large_values_are_compressed() -> None:
    value = ["a value"] * COMPRESSED_FROM
    with payload.json_file(json.dumps(value)) as packed:
        assert packed.suffix == ".json.gz" and packed.stored_bytes < packed.bytes / 10
        assert _loaded(packed) == value
        assert json.loads(gzip.decompress(packed.local.read_bytes())) == value
    assert not packed.local.exists()


def test_pickles_come_back() -> None:
    with payload.pickle_file({1, 2, 3}) as packed:
        assert packed.suffix == ".pkl.gz"
        assert _loaded(packed) == {1, 2, 3}


@pytest.mark.parametrize("damage", ["shorter", "longer", "other"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    with payload.json_file('"value"') as packed:
        reference = replace(_reference(packed), path="xcom/d/r/t/-1/k.0.json")
    content = {"shorter": b'"valu', "longer": b'"value" ', "other": b'"Value"'}[damage]
    with (
        pytest.raises(DamagedXComError, match=r"xcom/d/r/t/-1/k\.0\.json on the Volume is damaged"),
        payload.checked_copy(reference, [content]),
    ):
        pass
