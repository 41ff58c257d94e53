"""Do names of log segments sort in time, stay below their folder, and come apart again?"""

from __future__ import annotations

import pytest

from airflow_provider_modal.log import segments

LOG = "dag_id=d/run_id=manual__2026-01-01T00:00:00+00:00/task_id=t/attempt=1.log"


def test_names_sort_by_time_then_sequence() -> None:
    first = segments.segment_prefix(LOG, 1_700_000_000.25, "bbb")
    second = segments.segment_prefix(LOG, 1_700_000_001.0, "aaa")
    paths = [
        segments.segment_path(prefix, sequence)
        for prefix in (first, second)
        for sequence in (1, 2, 9, 10, 100)
    ]
    assert sorted(paths) == paths
    assert all(path.startswith(f"logs/{LOG}.") for path in paths)


def test_name_comes_apart() -> None:
    path = segments.segment_path(segments.segment_prefix(LOG, 1_700_000_000.25, "a-b-c"), 42)
    assert segments.parse(path) == segments.Segment(f"logs/{LOG}", "20231114T221320.250000Z", "a-b-c", 42)


@pytest.mark.parametrize("path", ["logs/x", f"logs/{LOG}", f"logs/{LOG}.1", f"logs/{LOG}.20231114-x.000001"])
def test_other_files_are_no_segments(path: str) -> None:
    assert segments.parse(path) is None


@pytest.mark.parametrize("log_path", ["../../etc/attempt=1.log", "/etc/attempt=1.log", "a/./../../x.log"])
def test_hostile_paths_stay_below_the_root(log_path: str) -> None:
    path = segments.segment_path(segments.segment_prefix(log_path, 0, "../d"), 1)
    assert path.startswith("logs/")
    assert not {"", ".", ".."} & set(path.split("/"))
