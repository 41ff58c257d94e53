"""Is a log whole, in order and in bounded memory, whoever wrote its pieces?"""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Mapping, Sequence

from airflow_provider_modal import wire
from airflow_provider_modal.log import attempt, segments
from airflow_provider_modal.volume.files import Entry

KEY = wire.TaskKey("d", "t", "r", 1)


class Stored:
    """Files in memory."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.most_at_once = 0

    def ship(self, started: float, dispatch: str, *contents: bytes, ended: bool = True) -> None:
        prefix = segments.segment_prefix(segments.task_log(KEY), started, dispatch)
        for number, content in enumerate(contents, 1):
            last = ended and number == len(contents)
            self.contents[segments.segment_path(prefix, number, last=last)] = content

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        found = (name for name in self.contents if name.startswith(f"{path}/"))
        return [Entry(name, len(self.contents[name]), 0.0, False) for name in found]

    def read_many(self, paths: Sequence[str]) -> Mapping[str, bytes]:
        found = {path: self.contents[path] for path in paths}
        self.most_at_once = max(self.most_at_once, sum(map(len, found.values())))
        return found


def lines(files: Stored) -> list[str]:
    return list(attempt.find(files, KEY).lines(files.read_many))


def test_dispatches_and_their_triggers_follow_each_other() -> None:
    files = Stored()
    files.ship(300.0, "a", b"resumed\n")
    files.ship(200.0, f"{segments.TRIGGER}7-1", b"waiting\n")
    files.ship(100.0, "z", *(b"%d\n" % n for n in range(12)), b"deferred")
    assert lines(files) == [*map(str, range(12)), "deferred", "waiting", "resumed"]
    assert [writer.ended for writer in attempt.find(files, KEY).writers()] == [True] * 3


def test_lost_container_leaves_half_a_line_that_nobody_completes() -> None:
    files = Stored()
    files.ship(1.0, "d", b"one\nha", b"lf", ended=False)
    files.ship(2.0, "d", b"two\n")
    assert lines(files) == ["one", "half", "two"]
    whole = attempt.find(files, KEY)
    assert [writer.ended for writer in whole.writers()] == [False, True] and whole.ended


def test_more_than_a_million_segments_stay_in_order() -> None:
    files = Stored()
    prefix = segments.segment_prefix(segments.task_log(KEY), 1.0, "d")
    for number in (1_000_000, 999_999, 2):
        files.contents[segments.segment_path(prefix, number)] = b"%d\n" % number
    assert lines(files) == ["2", "999999", "1000000"]


def test_end_has_whole_segments() -> None:
    files = Stored()
    files.ship(1.0, "d", b"x" * 50, b"y" * 50, b"z" * 50)
    whole = attempt.find(files, KEY)
    assert [whole.end(most).size for most in (1, 50, 99, 100, 1000)] == [50, 50, 50, 100, 150]


def test_long_log_is_never_in_memory_as_a_whole() -> None:
    files = Stored()
    piece = (b"x" * 9999 + b"\n") * 100  # the same object for each
    files.ship(1.0, "d", *itertools.repeat(piece, 500))
    whole = attempt.find(files, KEY)
    tracemalloc.start()
    try:
        assert sum(1 for _ in whole.lines(files.read_many)) == 50_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert whole.size == 500_000_000
    assert files.most_at_once <= attempt.BATCH_BYTES
    assert peak < 10 * len(piece)


def test_line_without_end_is_cut() -> None:
    files = Stored()
    piece = b"x" * 1024 * 1024
    files.ship(1.0, "d", *itertools.repeat(piece, 20), b"\nend\n")
    found = lines(files)
    assert max(map(len, found)) <= attempt.LONGEST_LINE + len(piece)
    assert sum(map(len, found[:-1])) == 20 * len(piece) and found[-1] == "end"


def test_no_log_is_no_error() -> None:
    found = attempt.find(Stored(), KEY)
    assert not found.ended and not found.size and list(found.lines(Stored().read_many)) == []


def test_what_is_no_task_has_a_log_too() -> None:
    files = Stored()
    for name in ("2", "1"):
        prefix = segments.segment_prefix(segments.other_log(f"{segments.CALLBACKS}/d/r/{name}"), 1.0, "c")
        files.contents[segments.segment_path(prefix, 1)] = name.encode()
    found = attempt.others(files, segments.callbacks_folder("d", "r"))
    assert [list(log.lines(files.read_many)) for log in found] == [["1"], ["2"]]
    assert attempt.others(files, segments.callbacks_folder("d", "other")) == []
