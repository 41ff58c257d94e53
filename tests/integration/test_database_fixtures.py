"""Are the databases that tests are given what they are said to be?"""

from __future__ import annotations

import psycopg2
import pytest


def _tables(url: str) -> set[str]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {name for (name,) in cursor.fetchall()}
    finally:
        connection.close()


def test_fresh_database_is_empty(fresh_database: str) -> None:
    assert _tables(fresh_database) == set()


def test_airflow_database_has_airflows_schema(airflow_database: str) -> None:
    assert {"dag_run", "task_instance", "job"} <= _tables(airflow_database)


def test_server_asks_for_the_password(postgres_url: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(postgres_url, password="wrong")
