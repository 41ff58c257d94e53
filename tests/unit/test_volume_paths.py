from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_modal.volume.paths import (
    SEGMENT_BYTES,
    below,
    inner_path,
    safe_path,
    safe_segment,
    segment_text,
)

any_text = st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=400)
nasty_text = st.text(alphabet="./\\%~*?\0\nA2E \ud800é:+=", max_size=12)


@given(any_text | nasty_text)
@example("")
@example(".")
@example("..")
@example("%")
@example("../../etc/passwd")
@example("a" * 10_000)
@example("é" * 150)
@example("%" * 100)
def test_a_segment_is_one_visible_name_that_fits(text: str) -> None:
    segment = safe_segment(text)

    assert segment and not segment.startswith(".")
    assert not set("/\\*\0\n") & set(segment)
    assert len(segment.encode()) <= SEGMENT_BYTES
    assert inner_path(segment) == segment


@given(any_text | nasty_text)
def test_a_segment_tells_its_text_unless_it_had_to_be_shortened(text: str) -> None:
    segment = safe_segment(text)

    assert (
        segment_text(segment) == text or len(text.encode("utf-8", "surrogatepass")) * 3 > SEGMENT_BYTES - 50
    )


@given(st.lists(nasty_text, min_size=2, max_size=20, unique=True))
def test_different_texts_never_share_a_segment(texts: list[str]) -> None:
    assert len({safe_segment(text) for text in texts}) == len(texts)


@given(
    st.text(alphabet="ab%/", min_size=200, max_size=230), st.text(alphabet="ab%/", min_size=200, max_size=230)
)
def test_long_texts_with_the_same_beginning_stay_apart(first: str, second: str) -> None:
    assert (safe_segment(first) == safe_segment(second)) == (first == second)


@pytest.mark.parametrize(
    "text", ["my_dag", "scheduled__2026-01-01T00:00:00+00:00", "extract.load", "a-b c@d,e"]
)
def test_usual_names_stay_readable(text: str) -> None:
    assert safe_segment(text) == text


def test_a_path_keeps_its_segments_apart() -> None:
    assert safe_path("a/b", "..", "c") == "a%2Fb/%2E./c"


@given(st.text(alphabet="a./\0", max_size=8))
def test_a_checked_path_never_leaves_its_root(path: str) -> None:
    root = Path("/root/of/all")
    try:
        found = below(root, path)
    except ValueError:
        return
    assert root in found.parents
    assert ".." not in found.parts


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b"])
def test_paths_that_are_not_plainly_inside_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="does not stay below"):
        below(Path("/root"), path)
