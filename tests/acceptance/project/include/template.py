"""Not a DAG file, although it looks like one."""

from __future__ import annotations

from airflow.sdk import DAG

with DAG("not_a_dag_file", schedule=None):
    pass
