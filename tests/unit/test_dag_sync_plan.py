from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.volume.dag_sync import LocalFile, Plan, plan

TREES = st.dictionaries(st.sampled_from(["a", "b", "c/d", ".env", "e"]), st.sampled_from(["1", "2"]))


def difference(present: dict[str, str], local: dict[str, str], *, delete: bool = True) -> Plan:
    files = {path: LocalFile(Path(path), 10, content) for path, content in local.items()}
    return plan(present, files, delete=delete, spared=lambda path: path.startswith("."))


@given(TREES, TREES, st.booleans())
def test_a_plan_leads_from_the_one_tree_to_the_other(
    present: dict[str, str], local: dict[str, str], delete: bool
) -> None:
    planned = difference(present, local, delete=delete)

    after = {path: content for path, content in present.items() if path not in planned.removed}
    after |= {path: local[path] for path in (*planned.added, *planned.changed)}
    assert after == planned.target
    assert {path: after[path] for path in local} == local
    stays = {path for path in present if path not in local and (not delete or path.startswith("."))}
    assert after.keys() == local.keys() | stays
    assert sorted(stays) == planned.kept
    assert planned.empty == (after == present)
    assert planned.empties == (bool(present) and not after.keys() & present.keys())
    assert planned.size == 10 * (len(planned.added) + len(planned.changed))
    assert difference(planned.target, local, delete=delete).empty
