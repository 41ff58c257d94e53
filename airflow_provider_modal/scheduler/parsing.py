"""What is a DAG file told that could not be parsed, and how long may parsing take?"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from airflow_provider_modal.container.processes import signal_name

REPORT_SECONDS = 1.0
"""Airflow interrupts a file by itself at the limit and reports where it was; only a file that can't be
interrupted is killed, after this much more."""
CALLBACK_SECONDS = 60.0
"""Callbacks of DAGs run in the processes that parse, but they are work, not parsing."""

_OUT_OF_MEMORY = re.compile(r"^MemoryError\b", re.MULTILINE)
ERROR_CHARACTERS = 65_536
"""How much of an import error is kept: the UI shows all of it."""


@dataclass(frozen=True)
class Limits:
    """What parsing may take: seconds, and memory.

    :param per_file: ``scheduler.parse_timeout_seconds``.
    :param phase: no further file is begun after this; those in progress still have their own limit.
    :param memory: ``scheduler.parse_memory``: MiB per file; 0 for no limit.
    """

    per_file: float
    phase: float
    memory: int = 0

    @property
    def kill_after(self) -> float:
        """When a process that parses a file is killed."""
        return self.per_file + REPORT_SECONDS

    @property
    def at_most(self) -> float:
        """When the whole phase has ended for sure, callbacks included."""
        return self.phase + max(self.kill_after, CALLBACK_SECONDS) + 5

    def explained(self, text: str) -> str:
        """Return an import error, with advice if the file ran out of memory."""
        if not self.memory or not _OUT_OF_MEMORY.search(text):
            return text
        return (
            f"{text.rstrip()}\n\nA DAG file may take {self.memory} MiB while it is parsed. Load less at its "
            "top level, or raise scheduler.parse_memory in config.yaml."
        )


def shortened(text: str) -> str:
    """Return an error's text, without its middle if it is too long."""
    left_out = len(text) - ERROR_CHARACTERS
    if left_out <= 0:
        return text
    half = ERROR_CHARACTERS // 2
    return f"{text[:half]}\n[... {left_out} characters are left out ...]\n{text[-half:]}"


def timeout_error(file: str, per_file: float) -> str:
    """Return the import error of a file that had to be killed."""
    return (
        f"{file} was not parsed within {per_file:g} s and could not be interrupted, so its process was "
        "killed. Move slow or blocking code from the file's top level into tasks, or raise "
        "scheduler.parse_timeout_seconds in config.yaml."
    )


def death_error(file: str, exit_code: int | None) -> str:
    """Return the import error of a file whose process ended without a result.

    :param exit_code: as in ``subprocess``: negative for a signal; None if nobody knows.
    """
    if exit_code is not None and exit_code < 0:
        how = f"was killed by {signal_name(-exit_code, str(-exit_code))}"
        advice = (
            "Probably the scheduler's container was out of memory: load less when the file is imported."
            if -exit_code == signal.SIGKILL
            else "Native code that the file imports has probably crashed."
        )
    else:
        how = "ended" if exit_code is None else f"ended with exit code {exit_code}"
        advice = "Don't end the process from a DAG file (sys.exit, os._exit)."
    return f"The process that parsed {file} {how} before it had a result. {advice}"
