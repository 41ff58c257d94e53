"""How is the executor set up? The options of section ``[modal]``.

Every option is read with its default as a fallback, because Airflow before 3.3 doesn't know a provider's
defaults. The defaults are those of ``provider.yaml``; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from airflow_provider_modal.errors import ConfigError

SECTION = "modal"


class Configuration(Protocol):
    """The part of Airflow's ``conf`` (or of a team's) that is needed here."""

    def get(self, section: str, key: str, *, fallback: str | None = None) -> str | None:
        """Return an option's text, or ``fallback``."""


@dataclass(frozen=True)
class Options:
    """The options of section ``[modal]``; times in seconds.

    :param environment: name of the environment that ``modalflow create`` deployed.
    :param connection_id: Airflow connection with the Modal token; without one, the SDK finds its own.
    :param serverless: the scheduler is a function of the environment, and task ends wake it.
    :param rpc_timeout: how long a single call to Modal may take.
    :param submit_concurrency: how many task calls are handed over at the same time.
    :param submit_deadline: how long handing over a task call is repeated while Modal does not answer.
    :param end_timeout: how long a stopping scheduler waits for calls that are being handed over.
    :param silent_after: after how long without any sign of a dispatch Modal is asked about it.
    :param start_timeout: for how long containers may end before they take the call that waits for them.
    :param capacity_timeout: how long a call may wait at Modal for a container to be had.
    :param container_lost_after: how long a container that runs a task may give no sign of life before another
        one that gets the same call takes it to be lost.
    """

    environment: str | None = None
    connection_id: str | None = None
    serverless: bool = False
    rpc_timeout: float = 15.0
    submit_concurrency: int = 32
    submit_deadline: float = 300.0
    end_timeout: float = 10.0
    silent_after: float = 60.0
    start_timeout: float = 120.0
    capacity_timeout: float = 43200.0
    container_lost_after: float = 30.0

    @classmethod
    def read(cls, configuration: Configuration) -> Options:
        """Read all options.

        :raises ConfigError: a value is not of the option's type, or a time or number is not positive.
        """
        values: dict[str, object] = {}
        for option in fields(cls):
            text = configuration.get(SECTION, option.name, fallback=None)
            if text is not None and text != "":
                values[option.name] = _parsed(option.name, str(option.type), str(text))
        return cls(**values)  # type: ignore[arg-type]


def too_soon(options: Options, task_queued_timeout: float) -> str | None:
    """Return what is wrong if Airflow itself gives up tasks that may still wait for capacity; None if not.

    :param task_queued_timeout: Airflow's option of section ``[scheduler]``, in seconds.
    """
    if task_queued_timeout >= options.capacity_timeout:
        return None
    return (
        f"[scheduler] task_queued_timeout is {task_queued_timeout:g} s and [{SECTION}] capacity_timeout "
        f"{options.capacity_timeout:g} s: Airflow takes back tasks that wait for a container for longer than "
        "the former, and fails them after a few times; set task_queued_timeout to capacity_timeout or more"
    )


_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def _parsed(name: str, kind: str, text: str) -> object:
    if kind.startswith("str"):
        return text
    if kind == "bool":
        if text.strip().lower() not in _BOOLEANS:
            raise ConfigError(f"[{SECTION}] {name} must be True or False, found {text!r}")
        return _BOOLEANS[text.strip().lower()]
    try:
        number: float = int(text) if kind == "int" else float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        wanted = "a whole number" if kind == "int" else "a number of seconds"
        raise ConfigError(f"[{SECTION}] {name} must be {wanted} greater than 0, found {text!r}")
    return number
