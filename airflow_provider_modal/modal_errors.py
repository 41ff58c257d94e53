"""What do Modal's errors mean to a user of this package?

The SDK raises one exception class per gRPC status. ``translated`` turns those that say "not reachable" and
"not allowed" into errors of ours, with what to do; everything else passes, because its meaning depends on
the call (a missing object may be a typing error or a normal state).
"""

from __future__ import annotations

import asyncio
import builtins
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_modal.errors import ConfigError, UnreachableError

NEW_TOKEN = "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"


def passing_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes of calls that may succeed when they are repeated."""
    import aiohttp
    from grpclib.exceptions import StreamTerminatedError
    from modal import exception

    return (
        exception.ConnectionError,
        exception.InternalError,
        exception.ResourceExhaustedError,
        exception.ServiceError,
        # The SDK repeats a call whose stream breaks off, and lets the last of these errors through as it is.
        StreamTerminatedError,
        aiohttp.ClientError,
        builtins.ConnectionError,
        socket.gaierror,
        asyncio.TimeoutError,
        builtins.TimeoutError,  # another class before Python 3.11
    )


def is_refused_token(error: Exception) -> bool:
    """Return whether an error that ``translated`` raised says that Modal refused the token."""
    from modal import exception

    return isinstance(error.__cause__, exception.AuthError)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Run SDK calls and translate their errors.

    :param what: what was being done, for the message: ``"deploy App modalflow-dev"``.
    :raises UnreachableError: Modal did not answer, or could not.
    :raises ConfigError: the token is missing, wrong, or not allowed to do this.
    """
    from modal import exception

    try:
        yield
    except exception.AuthError as error:
        raise ConfigError(f"can't {what}: Modal does not accept the token ({error}); {NEW_TOKEN}") from error
    except exception.PermissionDeniedError as error:
        raise ConfigError(f"can't {what}: the Modal token lacks the permission ({error})") from error
    except passing_errors() as error:
        reason = str(error) or type(error).__name__
        raise UnreachableError(f"can't {what}: Modal does not answer ({reason}); try again") from error
