from __future__ import annotations

import pytest

from airflow_provider_modal.scheduler.unchanged import Known, unconcerned

BEFORE = {"a.py": "1", "b.py": "1", "broken.py": "1", "helper.py": "1", "q.sql": "1", "include/m.py": "1"}
KNOWN = Known(defining=frozenset({"a.py", "b.py", "include/m.py"}), failing=frozenset({"broken.py"}))
ALL = sorted(BEFORE)


@pytest.mark.parametrize(
    ("change", "unconcerned_files"),
    [
        ({}, ALL),
        ({"a.py": "2"}, [path for path in ALL if path != "a.py"]),
        ({"a.py": None}, [path for path in ALL if path != "a.py"]),
        ({"broken.py": "2"}, [path for path in ALL if path != "broken.py"]),
        ({"helper.py": "2"}, []),
        ({"helper.py": None}, []),
        ({"q.sql": "2"}, []),
        ({"include/m.py": "2"}, []),
        ({"new.py": "1"}, [path for path in ALL if path != "broken.py"]),
        ({"new.yaml": "1"}, []),
        ({"plugins/p.py": "1"}, []),
    ],
)
def test_what_a_change_does_not_concern(change: dict[str, str | None], unconcerned_files: list[str]) -> None:
    now = {path: content for path, content in {**BEFORE, **change}.items() if content is not None}
    assert unconcerned(BEFORE, now, KNOWN) == unconcerned_files
