"""Do names of log segments sort in time, stay below their folder, and come apart again?"""

from __future__ import annotations

import pytest

from airflow_provider_modal import wire
from airflow_provider_modal.log import segments

RUN = "manual__2026-01-01T00:00:00+00:00"
LOG = segments.task_log(wire.TaskKey("d", "t", RUN, 1))


def test_names_sort_by_time_then_sequence() -> None:
    first = segments.segment_prefix(LOG, 1_700_000_000.25, "bbb")
    second = segments.segment_prefix(LOG, 1_700_000_001.0, "aaa")
    paths = [
        segments.segment_path(prefix, sequence)
        for prefix in (first, second)
        for sequence in (1, 2, 9, 10, 100)
    ]
    assert sorted(paths) == paths
    assert all(path.startswith(f"{LOG}.") for path in paths)


def test_log_has_the_name_that_airflow_gives_it_by_default() -> None:
    assert f"logs/dag_id=d/run_id={RUN}/task_id=t/attempt=1.log" == LOG
    mapped = segments.task_log(wire.TaskKey("d", "g.t", RUN, 2, 7))
    assert mapped == f"logs/dag_id=d/run_id={RUN}/task_id=g.t/map_index=7/attempt=2.log"


def test_name_comes_apart() -> None:
    path = segments.segment_path(segments.segment_prefix(LOG, 1_700_000_000.25, "a-b-c"), 42)
    assert segments.parse(path) == segments.Segment(LOG, "20231114T221320.250000Z", "a-b-c", 42)


def test_last_segment_is_told_from_others() -> None:
    prefix = segments.segment_prefix(LOG, 1_700_000_000.25, "a.000007.end")
    former, last = (segments.parse(segments.segment_path(prefix, 3, last=last)) for last in (False, True))
    assert former is not None and not former.last and former.sequence == 3
    assert last is not None and last.last and last.writer == former.writer


@pytest.mark.parametrize("path", ["logs/x", LOG, f"{LOG}.1", f"{LOG}.20231114-x.000001"])
def test_other_files_are_no_segments(path: str) -> None:
    assert segments.parse(path) is None


@pytest.mark.parametrize("log_path", ["../../etc/attempt=1.log", "/etc/attempt=1.log", "a/./../../x.log"])
def test_hostile_paths_stay_below_the_root(log_path: str) -> None:
    path = segments.segment_path(segments.segment_prefix(segments.other_log(log_path), 0, "../d"), 1)
    assert path.startswith("logs/")
    assert not {"", ".", ".."} & set(path.split("/"))


@pytest.mark.parametrize("hostile", ["..", "../../x", "/etc", "a/task_id=b", "", "x" * 300])
def test_hostile_names_are_one_part_of_the_path_each(hostile: str) -> None:
    path = segments.task_log(wire.TaskKey(hostile, hostile, hostile, 1))
    parts = path.split("/")
    assert [part.partition("=")[0] for part in parts] == ["logs", "dag_id", "run_id", "task_id", "attempt"]
    assert max(map(len, parts)) <= 200
