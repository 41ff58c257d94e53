"""Does a database have one owner, whoever claims it when?"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from airflow_provider_modal.db import ownership, schema
from airflow_provider_modal.db.connect import connect
from airflow_provider_modal.errors import ConfigError, ModalflowError

CLAIMANTS = [f"env-{number}" for number in range(6)]


def test_of_many_who_claim_at_once_one_gets_it(fresh_database: str) -> None:
    start = threading.Barrier(len(CLAIMANTS))

    def claim(env: str) -> str:
        connection = connect(fresh_database, application_name="test")
        try:
            start.wait(30)
            ownership.claim(connection, env)
            return "mine"
        except ownership.OwnershipError as error:
            return str(error)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(CLAIMANTS)) as pool:
        answers = dict(zip(CLAIMANTS, pool.map(claim, CLAIMANTS), strict=True))
    [owner] = [env for env, answer in answers.items() if answer == "mine"]
    for env in set(CLAIMANTS) - {owner}:
        assert f"belongs to environment {owner!r}: give environment {env!r}" in answers[env]


def test_user_that_may_not_create_tables_is_told(fresh_database: str) -> None:
    connection = connect(fresh_database, application_name="test")
    try:
        with connection.cursor() as cursor:
            cursor.execute("CREATE ROLE reader; REVOKE CREATE ON SCHEMA public FROM PUBLIC; SET ROLE reader")
        with pytest.raises(ConfigError, match="may not create tables") as refused:
            ownership.claim(connection, "dev")
        assert str(urlsplit(fresh_database).password) not in str(refused.value)
        with connection.cursor() as cursor:
            cursor.execute("RESET ROLE; DROP ROLE reader")
    finally:
        connection.close()


def test_what_airflow_migrated_is_what_was_read_from_its_files(airflow_database: str) -> None:
    connection = connect(airflow_database, application_name="test")
    try:
        assert schema.revision(connection) == schema.installed().head
        schema.require_current(connection, "dev")
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM alembic_version")
        with pytest.raises(ModalflowError, match="does not have Airflow's tables"):
            schema.require_current(connection, "dev")
    finally:
        connection.close()
