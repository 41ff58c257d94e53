"""How does a command end when something went wrong?

Every error becomes one or two lines on stderr, an exit code and, with ``--json``, a JSON document on stdout.
Tracebacks are for ``--debug`` and MODALFLOW_DEBUG=1.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.output import print_json
from airflow_provider_modal.errors import ERRORS_BY_KIND, ConfigError, ModalflowError

DEBUG = "MODALFLOW_DEBUG"


class Interrupted(ModalflowError):
    """Ctrl-C; the text says what was left how."""

    exit_code = 130


class ReportingGroup(click.Group):
    """The outermost group: reports what any command raises, and exits."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; errors are reported here and nowhere else."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        except Exception as error:
            _exit_with(error, arguments)
        # Commands return nothing; click returns the code of --help and --version.
        sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def interruptible(left: str) -> Iterator[None]:
    """Turn Ctrl-C into an end with exit code 130.

    :param left: a sentence: what goes on, or how to complete what was begun.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {left}") from None


def _exit_with(error: Exception, arguments: list[str]) -> NoReturn:
    known = _as_known(error)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if os.environ.get(DEBUG, "") not in ("", "0") or "--debug" in flags:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, click.UsageError):
        error.show(sys.stderr)
    else:
        click.secho(f"Error: {known}", err=True, fg="red")
    if "--json" in flags:
        print_json({"error": {"kind": _kind(known), "message": str(known)}})
    sys.exit(known.exit_code)


def _kind(error: ModalflowError) -> str:
    """Return the kind of error that has this exit code: errors of one kind may have classes of their own."""
    kinds = {cls.exit_code: kind for kind, cls in ERRORS_BY_KIND.items()}
    return kinds.get(error.exit_code, "interrupted")


def _as_known(error: Exception) -> ModalflowError:
    if isinstance(error, ModalflowError):
        return error
    if isinstance(error, click.Abort):
        if isinstance(error.__context__, KeyboardInterrupt):
            return Interrupted("interrupted")
        if isinstance(error.__context__, EOFError):
            return ConfigError("nobody answers here; give --yes to go on without being asked")
        return ModalflowError("stopped, nothing was changed")
    if isinstance(error, click.ClickException):
        return ConfigError(error.format_message())
    if isinstance(error, OSError) and error.filename is not None:
        return ModalflowError(f"{error.filename}: {error.strerror}")
    return modal_access.explained(error) or ModalflowError(
        f"unexpected {type(error).__name__}: {error or 'no message'}\n"
        f"This is a bug, please report it; {DEBUG}=1 shows where it happened."
    )
