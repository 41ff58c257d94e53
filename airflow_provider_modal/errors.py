"""What can go wrong in a way that a person can act on, and which exit code says so.

Messages name the setting or file, what was found and what to do; they never hold a secret's value.
"""

from __future__ import annotations


class ModalflowError(Exception):
    """Something failed; its text is shown to the user as it is, without a traceback (exit code 1)."""

    exit_code = 1


class ConfigError(ModalflowError):
    """A setting, argument or file of the user is wrong (exit code 2)."""

    exit_code = 2


class NotFoundError(ModalflowError):
    """What was asked for does not exist: an environment, a DAG, a run, a log (exit code 3)."""

    exit_code = 3


class UnreachableError(ModalflowError):
    """Modal or the database does not answer (exit code 4)."""

    exit_code = 4


ERRORS_BY_KIND: dict[str, type[ModalflowError]] = {
    "failed": ModalflowError,
    "config": ConfigError,
    "not_found": NotFoundError,
    "unreachable": UnreachableError,
}
"""Names under which an error crosses a function call (see ``control``); inverse of :func:`kind_of`."""


def kind_of(error: ModalflowError) -> str:
    """Return the name under which ``error`` crosses a function call."""
    for kind, cls in ERRORS_BY_KIND.items():
        if type(error) is cls:
            return kind
    return next(
        (kind for kind, cls in ERRORS_BY_KIND.items() if kind != "failed" and isinstance(error, cls)),
        "failed",
    )
