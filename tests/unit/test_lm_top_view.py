"""What a frame of `top` says, from made-up answers of a server."""

from __future__ import annotations

from typing import Any

from local_modal.top_view import duration, plain


def status(uptime: float, calls: int, seconds: float, containers: int = 0) -> dict[str, Any]:
    container = {
        "task_id": "ta-1", "app_name": "app", "function_name": "work", "state": "busy", "pid": 42, "age": 3.0,
        "memory": 50 * 2**20, "inputs_taken": 7,
        "running_inputs": [{"input_id": "in-1"}, {"input_id": "in-2"}],
    }  # fmt: skip
    return {
        "server": {
            "server_url": "http://127.0.0.1:1", "mode": "isolated", "pid": 1, "uptime": uptime,
            "memory": 2**20, "max_containers": 12, "seed": 5,
        },
        "apps": [],
        "functions": [],
        "containers": [container] * containers,
        "rpcs": {"QueuePut": {"calls": calls, "errors": 1, "seconds": seconds}},
        "faults": [
            {"id": "f1", "fault": "fail", "rpc": "Queue*", "state": "active", "struck": 3, "count": 9}
        ],
        "log": [{"time": 0.0, "level": "WARNING", "message": "careful"}],
    }  # fmt: skip


def test_rates_are_between_two_looks() -> None:
    [row] = [
        line for line in plain(status(12, 130, 3.3), status(10, 100, 3.0)) if line.startswith("QueuePut")
    ]
    assert row.split() == ["QueuePut", "15.0", "10.0", "130", "1"]
    [row] = [line for line in plain(status(10, 100, 3.0)) if line.startswith("QueuePut")]
    assert row.split() == ["QueuePut", "10.0", "30.0", "100", "1"]


def test_a_frame_names_what_runs_and_what_is_disturbed() -> None:
    lines = plain(status(1, 1, 1, containers=1))
    text = "\n".join(lines)
    assert "Apps: none" in text and "app.work" in text and "in-1 +1" in text and "50 MB" in text
    assert "f1  fail   Queue*  active       3  count=9" in text and "WARN careful" in text
    assert all(len(line) <= 40 for line in plain(status(1, 1, 1, containers=1), width=40))


def test_many_containers_leave_room_for_the_rest() -> None:
    lines = plain(status(1, 1, 1, containers=100), rows=10)
    assert sum(line.startswith("ta-1") for line in lines) == 10 and "Containers (10 of 100)" in lines


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5.23, 192, 14700)] == ["5.2s", "3m12s", "4h05m"]
