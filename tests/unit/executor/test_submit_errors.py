from __future__ import annotations

import asyncio

import pytest
from modal import exception

from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors import submit_errors
from airflow_provider_modal.executors.submit_errors import backoff, classify
from airflow_provider_modal.names import ResourceNames

RESOURCES = ResourceNames("prod")


@pytest.mark.parametrize(
    ("error", "ambiguous"),
    [
        (asyncio.TimeoutError(), True),
        (exception.ServiceError("unavailable"), True),
        (exception.InternalError("oops"), True),
        (exception.ClientClosed("closed"), True),
        (exception.ConnectionError("[Errno 111]"), False),
        (ConnectionRefusedError(111, "refused"), False),
        (exception.ResourceExhaustedError("too many inputs"), False),
        (Exception("Could not create function call - the input queue seems to be full"), False),
    ],
)
def test_what_says_nothing_about_the_call_is_repeated(error: Exception, ambiguous: bool) -> None:
    verdict = classify(error, RESOURCES)
    assert verdict.retry
    assert verdict.ambiguous is ambiguous
    assert verdict.reason


@pytest.mark.parametrize(
    ("error", "pressure"),
    [
        (exception.ResourceExhaustedError("too many containers"), True),
        (Exception("Could not create function call - the input queue seems to be full"), True),
        (exception.ServiceError("unavailable"), False),
        (exception.ConnectionError("[Errno 111]"), False),
        (exception.InvalidError("bad"), False),
    ],
)
def test_a_modal_that_takes_no_more_is_told_from_one_that_is_away(error: Exception, pressure: bool) -> None:
    assert classify(error, RESOURCES).pressure is pressure


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (exception.NotFoundError("no function"), "modalflow create --env prod"),
        (exception.AuthError("bad token"), "modal token new"),
        (exception.PermissionDeniedError("no"), "permission"),
        (exception.RequestSizeError("too big"), "smaller"),
        (exception.InvalidError("bad"), "bad"),
        (ConfigError("queue 'x' is not a worker profile"), "queue 'x'"),
        (TypeError("a bug"), "a bug"),
    ],
)
def test_the_rest_is_final_and_says_what_to_do(error: Exception, advice: str) -> None:
    verdict = classify(error, RESOURCES)
    assert not verdict.retry
    assert advice in verdict.reason


def test_backoff_grows_to_a_bound_and_is_jittered() -> None:
    for attempt, most in [(1, 0.5), (3, 2.0), (6, 16.0), (7, 20.0), (1000, 20.0)]:
        delays = [backoff(attempt) for _ in range(50)]
        assert all(most / 2 <= delay <= most for delay in delays)
        assert len(set(delays)) > 1


def test_backoff_follows_the_server_within_a_bound() -> None:
    assert 30 <= backoff(1, wait=30) <= 31
    assert backoff(1, wait=1e9) <= submit_errors.HINT_MOST + 1


def test_the_servers_hint_is_read() -> None:
    class Hint:
        retry_after_secs = 7.0

    error = exception.ResourceExhaustedError("slow down")
    error._grpc_details = [object(), Hint()]
    assert classify(error, RESOURCES).wait == 7.0
