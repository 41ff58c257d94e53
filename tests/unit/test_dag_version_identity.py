from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.volume.dag_copies import local_path
from airflow_provider_modal.volume.dag_tree import is_dag_tree_path
from airflow_provider_modal.volume.dag_versions import DagVersion

trees = st.dictionaries(st.text(max_size=8), st.text(alphabet="0123456789abcdef", min_size=1, max_size=4))


@given(trees, st.randoms())
def test_a_tree_has_one_digest_whatever_the_order_of_its_files(tree: dict[str, str], random: object) -> None:
    shuffled = list(tree.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert DagVersion.of(dict(shuffled)) == DagVersion.of(tree)


@given(trees, trees)
def test_different_trees_have_different_digests(first: dict[str, str], second: dict[str, str]) -> None:
    assert (DagVersion.of(first).digest == DagVersion.of(second).digest) == (first == second)


def test_the_digest_is_for_ever_the_same() -> None:
    """Runs in users' databases refer to it."""
    version = DagVersion.of({"b/c.py": "22", "a.py": "11"})

    assert version.digest == "80566e128873bed498f35be96e5054899e6ac71d562c5bf779bfdb51d6c435a0"
    assert list(version.files) == ["a.py", "b/c.py"]


@pytest.mark.parametrize(
    ("path", "belongs"),
    [
        ("a.py", True),
        ("team/a.py", True),
        (".airflowignore", True),
        ("team/.airflowignore", True),
        ("__pycache__/a.cpython-311.pyc", False),
        ("team/__pycache__/a.py", False),
        ("a.pyc", False),
        (".git/config", False),
        ("team/.ipynb_checkpoints/a.py", False),
    ],
)
def test_caches_and_hidden_folders_are_no_dag_code(path: str, belongs: bool) -> None:
    assert is_dag_tree_path(path) is belongs


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "A" * 64, "a" * 63, "a" * 65])
def test_only_a_digest_names_a_local_folder(digest: str) -> None:
    with pytest.raises(ValueError, match="not the digest"):
        local_path(Path("/root"), digest)
