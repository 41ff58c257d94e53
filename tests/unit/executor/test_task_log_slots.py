"""How many pages may wait for logs at the same time?"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_modal import names, wire
from airflow_provider_modal.executors import task_log
from airflow_provider_modal.executors.task_log import Answer, TaskLogs

KEY = wire.TaskKey("d", "t", "r", 1)
LOG = Answer(["Log so far"], ["line"])
PATIENCE = 60.0


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> TaskLogs:
    monkeypatch.setattr(TaskLogs, "_read", lambda self, key, call_id: LOG)
    monkeypatch.setattr(task_log, "SLOT_SECONDS", 0.1)
    return TaskLogs(names.ResourceNames("prod"))


def test_a_page_that_is_one_too_many_says_so(logs: TaskLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Semaphore(0), threading.Event()

    def slow(self: TaskLogs, key: wire.TaskKey, call_id: str | None) -> Answer:
        reading.release()
        assert go_on.wait(PATIENCE)
        return LOG

    monkeypatch.setattr(TaskLogs, "_read", slow)
    with ThreadPoolExecutor(task_log.MOST_AT_ONCE) as pages:
        answers = [pages.submit(logs.read, KEY, None, timeout=PATIENCE) for _ in range(task_log.MOST_AT_ONCE)]
        try:
            assert all(reading.acquire(timeout=PATIENCE) for _ in answers)
            [told] = logs.read(KEY, None, timeout=PATIENCE).sources
        finally:
            go_on.set()
        assert [answer.result() for answer in answers] == [LOG] * len(answers)
    assert "8 other pages are waiting for logs" in told
    assert "Modal has not answered" not in told
    assert logs.read(KEY, None, timeout=PATIENCE) == LOG


def test_pages_for_which_no_thread_can_start_leave_room_for_others(
    logs: TaskLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(task_log.MOST_AT_ONCE + 1):
            assert "can't start new thread" in logs.read(KEY, None).sources[0]
    assert logs.read(KEY, None, timeout=PATIENCE) == LOG
