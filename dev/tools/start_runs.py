"""Brings the DAGs of all bundles into Airflow's database, as a DAG processor would, and creates manual runs:
``[[DAG id, run id], ...]`` on stdin.

One process for all of it, because importing Airflow takes longer than a thousand runs.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace


def main() -> None:
    """Do both."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.cli.commands.dag_command import dag_reserialize
    from airflow.utils.types import DagRunTriggeredByType

    dag_reserialize(Namespace(bundle_name=None))
    for dag_id, run_id in json.load(sys.stdin):
        trigger_dag(dag_id=dag_id, run_id=run_id, triggered_by=DagRunTriggeredByType.CLI)


if __name__ == "__main__":
    main()
