"""What does a heartbeat cost, in statements to Airflow's database and orders to the dispatcher?"""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timezone
from typing import Any

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_modal.executors.ledger import Flight
from airflow_provider_modal.executors.options import Options
from tests.support.recorded_executor import Executor, RecordedDispatcher
from tests.support.task_rows import Rows

OPTIONS = Options(environment="prod", serverless=True)
HEARTBEATS = 3


def _cost(rows: Rows, running: int) -> tuple[Counter[str], Counter[str]]:
    """Return (statements, orders) of a few heartbeats while so many tasks run, all of them due to be looked
    at: Airflow has heard of them, the executor has not."""
    from airflow import settings
    from sqlalchemy import event

    rows.clear()
    executor = Executor(parallelism=2 * running)
    executor.job_id = 1
    dispatcher = RecordedDispatcher()
    executor._use(dispatcher, OPTIONS)
    for number in range(running):
        key = TaskInstanceKey("d", "t", "r", 1, number)
        rows.task(
            "running",
            f"d{number}/fc-{number}",
            map_index=number,
            last_heartbeat_at=datetime.now(timezone.utc),
        )
        executor.running.add(key)
        executor.ledger.open(
            Flight(
                f"d{number}", key, last_sign=time.time() - 2 * OPTIONS.silent_after, call_id=f"fc-{number}"
            )
        )
    statements: Counter[str] = Counter()

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements[statement] += 1

    event.listen(settings.engine, "before_cursor_execute", count)
    try:
        for _ in range(HEARTBEATS):
            executor.heartbeat()
    finally:
        event.remove(settings.engine, "before_cursor_execute", count)
    assert executor.slots_occupied == len(executor.ledger) == running
    assert not executor.ledger.silent(time.time(), OPTIONS.silent_after), "all were looked at"
    return statements, Counter(kind for kind, *_ in dispatcher.orders)


def test_a_heartbeat_costs_the_same_for_one_task_and_for_three_hundred(rows: Rows) -> None:
    one, many = _cost(rows, 1), _cost(rows, 300)
    assert one == many
    statements, orders = many
    assert statements.total() == 1, "for all of them together, and not at each heartbeat"
    assert orders == {"listen": 1}
