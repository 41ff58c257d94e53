"""A DAG that shows where its tasks run: a chain with XComs, a mapped task, Bash, and a retry.

Every task prints its Modal container, host name, pid and /tmp, so that the log tells which container it was.
"""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path

try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import dag, get_current_context, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task  # type: ignore[no-redef]
    from airflow.operators.bash import BashOperator
    from airflow.operators.python import get_current_context


def _where() -> dict[str, object]:
    """Print and return which container this is."""
    found = {
        "container": os.environ.get("MODAL_TASK_ID", "not on Modal"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "tmp": sorted(path.name for path in Path("/tmp").iterdir()),
    }
    print(f"MODAL_TASK_ID={found['container']} host={found['host']} pid={found['pid']} /tmp={found['tmp']}")
    return found


@dag(
    schedule=None,
    start_date=datetime(2025, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    tags=["modalflow", "example"],
    doc_md=__doc__,
)
def modalflow_quickstart() -> None:
    """Numbers are made, squared by one mapped task each, and added up."""

    @task
    def numbers() -> list[int]:
        _where()
        return [1, 2, 3]

    @task
    def square(number: int) -> int:
        _where()
        return number * number

    @task
    def total(squares: list[int]) -> int:
        _where()
        result = sum(squares)
        print(f"the sum of the squares is {result}")
        return result

    @task(retries=2, retry_delay=timedelta(seconds=1))
    def flaky() -> str:
        _where()
        attempt = get_current_context()["ti"].try_number
        if attempt == 1:
            raise RuntimeError("the first try fails on purpose; Airflow tries again")
        return f"succeeded on try {attempt}"

    shell = BashOperator(
        task_id="shell",
        bash_command=(
            'echo "bash in $MODAL_TASK_ID on $(hostname), pid $$"; '
            "echo \"the total is {{ ti.xcom_pull(task_ids='total') }}\""
        ),
    )

    made = numbers()
    total(square.expand(number=made)) >> shell
    made >> flaky()


modalflow_quickstart()
