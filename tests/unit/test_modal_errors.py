from __future__ import annotations

import asyncio

import pytest
from grpclib.exceptions import StreamTerminatedError
from modal import exception

from airflow_provider_modal.errors import ConfigError, UnreachableError
from airflow_provider_modal.modal_errors import translated


@pytest.mark.parametrize(
    "error",
    [
        exception.ConnectionError("Could not connect to the Modal server."),
        exception.ServiceError("unavailable"),
        exception.InternalError("oops"),
        exception.ResourceExhaustedError("slow down"),
        StreamTerminatedError("reset by remote party"),
        ConnectionResetError("reset"),
        asyncio.TimeoutError(),
        TimeoutError(),
    ],
)
def test_a_modal_that_does_not_answer_is_unreachable(error: Exception) -> None:
    with pytest.raises(UnreachableError, match="can't list files: Modal does not answer") as told:
        with translated("list files"):
            raise error

    assert told.value.__cause__ is error
    assert str(error) in str(told.value)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (exception.AuthError("Token missing"), "modal token new"),
        (exception.PermissionDeniedError("no"), "token"),
    ],
)
def test_a_token_that_is_not_accepted_is_a_matter_of_configuration(error: Exception, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        with translated("list files"):
            raise error


@pytest.mark.parametrize(
    "error",
    [exception.NotFoundError("x"), exception.InvalidError("x"), FileNotFoundError("x"), ValueError("x")],
)
def test_errors_whose_meaning_depends_on_the_call_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as passed:
        with translated("list files"):
            raise error

    assert passed.value is error
