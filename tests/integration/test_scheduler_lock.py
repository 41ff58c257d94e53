"""Is there at most one scheduler per database, and does nobody but a live holder keep it?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import psycopg2
import pytest

from airflow_provider_modal.db import lock as lock_module
from airflow_provider_modal.db.connect import application_name, connect
from airflow_provider_modal.db.lock import AdvisoryLock, LockHeldError
from airflow_provider_modal.errors import ConfigError, UnreachableError
from tests.support.pooler import TransactionPooler

HOLD = """
import os, sys, time
from airflow_provider_modal.db.lock import AdvisoryLock
lock = AdvisoryLock(sys.argv[1], application_name="modalflow:alpha")
lock.acquire()
{more}
print("held", flush=True)
sys.stdin.read()
"""


def _lock(url: str, env: str = "alpha") -> AdvisoryLock:
    return AdvisoryLock(url, application_name=application_name(env))


def _holder(url: str, more: str = "") -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(more=more), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    return holder


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _execute(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


def test_second_holder_of_the_same_environment_is_told(fresh_database: str) -> None:
    with _held(fresh_database), pytest.raises(LockHeldError, match="another process of environment 'alpha'"):
        _lock(fresh_database).acquire()


def test_another_environment_is_named_and_not_waited_for(fresh_database: str) -> None:
    started = time.monotonic()
    with _held(fresh_database), pytest.raises(LockHeldError, match="environment 'alpha' schedules") as caught:
        _lock(fresh_database, "beta").acquire(wait=60)
    assert caught.value.environment == "alpha"
    assert time.monotonic() - started < 30


def test_a_stranger_with_our_key_is_named(fresh_database: str) -> None:
    stranger = AdvisoryLock(fresh_database, application_name="somebody")
    stranger.acquire()
    with stranger, pytest.raises(LockHeldError, match="'somebody', which is no environment"):
        _lock(fresh_database).acquire(wait=30)


def test_own_predecessor_is_waited_for(fresh_database: str) -> None:
    predecessor = _held(fresh_database)
    timer = threading.Timer(0.4, predecessor.release)
    timer.start()
    successor = _lock(fresh_database)
    successor.acquire(wait=60)
    timer.join()
    with successor:
        assert successor.ping()


def test_databases_of_one_server_do_not_share_the_lock(fresh_database: str, airflow_database: str) -> None:
    with _held(fresh_database), _held(airflow_database) as second:
        assert second.ping()


def test_a_killed_holder_leaves_nothing(fresh_database: str) -> None:
    holder = _holder(fresh_database)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with _lock(fresh_database) as lock:
        lock.acquire(wait=60)
        assert lock.ping()


def test_a_stray_process_of_a_killed_holder_does_not_keep_it(fresh_database: str) -> None:
    more = "import subprocess; stray = subprocess.Popen(['sleep', '60']); print(stray.pid, file=sys.stderr)"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(more=more), fresh_database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stderr is not None
    assert holder.stdout.readline().strip() == "held"
    stray = int(holder.stderr.readline())
    try:
        holder.kill()
        holder.wait()
        os.kill(stray, 0)
        with _lock(fresh_database) as lock:
            lock.acquire(wait=30)
            assert lock.ping()
    finally:
        os.kill(stray, signal.SIGKILL)


def test_a_lost_lock_is_noticed_at_once(fresh_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only by the next ping."""
    monkeypatch.setattr(lock_module, "PING_SECONDS", 600.0)
    lost = threading.Event()
    lock = _held(fresh_database)
    with lock.watch(lost.set):
        _execute(
            fresh_database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'modalflow:alpha'",
        )
        assert lost.wait(30)
    assert lock.lost
    lock.release()


def test_a_loss_that_another_thread_has_found_is_told_by_the_watch(fresh_database: str) -> None:
    lost = threading.Event()
    lock = _held(fresh_database)
    lock.connection.close()
    with lock.watch(lost.set):
        assert lost.wait(30)
    assert lock.lost
    lock.release()


def test_a_lock_given_away_behind_our_back_is_noticed(fresh_database: str) -> None:
    lock = _held(fresh_database)
    with lock.connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock_all()")
    assert not lock.ping()
    assert lock.lost
    lock.release()


def test_a_watch_ends_quietly_while_the_lock_is_held(fresh_database: str) -> None:
    lost = threading.Event()
    with _held(fresh_database) as lock:
        with lock.watch(lost.set):
            pass
        assert lock.ping()
    assert not lost.is_set()


def test_a_pooler_in_transaction_mode_is_refused(fresh_database: str) -> None:
    pooler = TransactionPooler(fresh_database)
    try:
        with pytest.raises(ConfigError, match="pooler in transaction mode"):
            _lock(pooler.url).acquire()
    finally:
        pooler.close()
    with _held(fresh_database) as lock:
        assert lock.ping(), "the refused connection must not keep the lock"


def test_wrong_password_is_told_without_any_password(fresh_database: str) -> None:
    password = urlsplit(fresh_database).password
    assert password
    with pytest.raises(ConfigError, match="refuses the user or password") as caught:
        connect(fresh_database.replace(password, "not-the-passw0rd"), application_name="test")
    assert "passw0rd" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_missing_database_is_a_matter_of_configuration(fresh_database: str) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*connection_string"):
        connect(fresh_database.rpartition("/")[0] + "/nothing_here", application_name="test")


def test_unreachable_host_is_named() -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 can't be reached") as caught:
        connect("postgresql://someone:hidden@127.0.0.1:1/airflow", application_name="test", connect_timeout=2)
    assert "hidden" not in str(caught.value)


def test_malformed_url_is_told_without_its_password() -> None:
    with pytest.raises(ConfigError, match="not a valid PostgreSQL URL") as caught:
        connect("postgresql://someone:hidden@127.0.0.1:port/airflow", application_name="test")
    assert "hidden" not in str(caught.value)


def _held(url: str, env: str = "alpha") -> AdvisoryLock:
    lock = _lock(url, env)
    lock.acquire()
    return lock
