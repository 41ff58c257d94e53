"""What may a task ask of its executor? Its ``queue`` and ``executor_config``, checked when it is queued.

    executor_config={"modal": {"gpu": "H100", "memory": 8192, "secrets": ["hf"], "timeout": 7200}}

=====================  ==============================================================================
``gpu``                Modal's name of a GPU, with a count if wanted: ``"H100"``, ``"A10G:2"``
``cpu``                cores, or ``[request, limit]``
``memory``             MiB, reserved and the limit, or ``[request, limit]``
``region``             a region or a list of them
``cloud``              a cloud provider
``secrets``            names of Modal Secrets, in addition to the worker profile's
``env``                environment variables of the task's process; not for secrets
``requirements``       packages on top of the image's, such as ``["pandas==2.2.3"]``
``timeout``            seconds that the task may run
``on_container_loss``  ``"fail"``, or ``"rerun"`` for a task that can safely start twice
``log_lines``          how many last lines of its log the reason of a failure ends with
=====================  ==============================================================================

Nothing here asks Modal: whether it has such a GPU or Secret shows when the task is handed over.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_modal import names
from airflow_provider_modal.config import MAX_TASK_SECONDS
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.venvs import requirements
from airflow_provider_modal.wire import ContainerLoss

KEY = "modal"
"""The executor's key in a task's ``executor_config``."""
MOST_BYTES = 32 * 1024
"""Size of a task's options as JSON. They are part of each of its calls."""
MOST_LOG_LINES = 100

_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*(:[1-9][0-9]{0,2})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_VARIABLES = ("AIRFLOW__", "MODAL_", "MODALFLOW_")
_UINT32 = 2**32 - 1
"""The largest number that Modal's protocol carries for memory and timeouts, and for thousandths of cores."""
_SHOWN = 60

_OF_A_PROFILE = (
    "is a property of a worker profile: set it below workers in config.yaml, run modalflow create, "
)
_OF_A_PROFILE += "and choose the profile by the task's queue"
_ELSEWHERE = {
    "image": "can't be chosen by a task: all containers run in the image of config.yaml",
    "retries": "belongs to the operator: Airflow repeats tasks, Modal does not",
    "min_containers": _OF_A_PROFILE,
    "max_containers": _OF_A_PROFILE,
    "scaledown_window": _OF_A_PROFILE,
    "nonpreemptible": _OF_A_PROFILE,
}
"""What people look for here."""


@dataclass(frozen=True)
class TaskOptions:
    """What one task wants otherwise; without anything it is what its worker profile offers.

    :param function: what Modal is told; with the task's own Secrets only.
    :param requirements: packages of its own, in one spelling and order.
    :param timeout: seconds that the task may run, if it says so.
    :param log_lines: how many last lines of the log a failure's reason ends with.
    """

    function: FunctionOptions = field(default_factory=FunctionOptions)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    requirements: tuple[str, ...] = ()
    timeout: float | None = None
    on_container_loss: ContainerLoss = "fail"
    log_lines: int = 0


def read(executor_config: Any) -> TaskOptions:
    """Return what a task's ``executor_config`` asks of this executor; keys of other executors are ignored.

    :raises ConfigError: a key or value that can't be had; names it and what is allowed.
    """
    options = _section(executor_config)
    wanted: dict[str, Any] = {}
    for key, value in options.items():
        if key not in _READERS:
            raise ConfigError(_unknown(key))
        if value is not None:
            wanted[key] = _READERS[key](key, value)
    size = len(json.dumps(wanted, ensure_ascii=False).encode())
    if size > MOST_BYTES:
        raise ConfigError(
            f"executor_config[{KEY!r}] takes {size:,} bytes, at most {MOST_BYTES:,} are allowed; keep what "
            "is large where the task can read it"
        )
    of_task = {
        name: wanted.pop(name)
        for name in ("env", "requirements", "timeout", "on_container_loss", "log_lines")
        if name in wanted
    }
    return TaskOptions(FunctionOptions(**wanted), **of_task)


def profile_of_queue(queue: str | None, default_queue: str) -> str:
    """Return the worker profile that a task's ``queue`` names; Airflow's default queue is the default one."""
    return names.DEFAULT_PROFILE if queue in (None, "", names.DEFAULT_PROFILE, default_queue) else str(queue)


def _section(executor_config: Any) -> Mapping[Any, Any]:
    if executor_config is None:
        return {}
    if not isinstance(executor_config, Mapping):
        raise ConfigError(
            f"executor_config must be a dict, found {type(executor_config).__name__}; change the task's "
            "definition"
        )
    options = executor_config.get(KEY)
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"executor_config[{KEY!r}] must be a dict of options, found {type(options).__name__}; change the "
            "task's definition"
        )
    return options


def _unknown(key: Any) -> str:
    where = f"executor_config[{KEY!r}][{_shown(key)}]"
    if key in _ELSEWHERE:
        return f"{where} {_ELSEWHERE[key]}"
    close = difflib.get_close_matches(str(key), _READERS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{where} is not an option; {hint}Known are: {', '.join(sorted(_READERS))}"


def _wrong(key: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(
        f"executor_config[{KEY!r}][{key!r}] must be {allowed}, found {_shown(value)}; change the task's "
        "definition"
    )


def _shown(value: Any) -> str:
    """Return a value for a message: short, and of foreign types only the name."""
    if not isinstance(value, str | int | float | bool | list | tuple):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _gpu(key: str, value: Any) -> str:
    allowed = "the name of a GPU with a count if wanted, such as 'H100' or 'A10G:2'"
    if isinstance(value, list | tuple):
        allowed += " (Modal takes a list of alternatives only where a function is deployed)"
    if not isinstance(value, str) or not _GPU.fullmatch(value):
        raise _wrong(key, value, allowed)
    # As the SDK does: both spellings are one kind of container.
    return value.upper()


def _cpu(key: str, value: Any) -> float | tuple[float, float]:
    allowed = "a number of cores greater than 0, or [request, limit]"
    if isinstance(value, list | tuple):
        return _pair(
            key, value, [_number(key, value, each, 0.001, _UINT32 / 1000, allowed) for each in value]
        )
    return _number(key, value, value, 0.001, _UINT32 / 1000, allowed)


def _memory(key: str, value: Any) -> tuple[int, int]:
    allowed = "a whole number of MiB greater than 0, or [request, limit]"
    both = value if isinstance(value, list | tuple) else (value, value)
    if not all(isinstance(each, int) for each in both):
        raise _wrong(key, value, allowed)
    return _pair(key, value, [int(_number(key, value, each, 1, _UINT32, allowed)) for each in both])


def _pair(key: str, value: Any, numbers: list[Any]) -> tuple[Any, Any]:
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise _wrong(key, value, "[request, limit] with a limit that is not below the request")
    return numbers[0], numbers[1]


def _number(key: str, value: Any, number: Any, least: float, most: float, allowed: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _wrong(key, value, allowed)
    # Whole numbers may be too large to be a float.
    if not (isinstance(number, int) or math.isfinite(number)) or not least <= number <= most:
        raise _wrong(key, value, allowed)
    return number


def _region(key: str, value: Any) -> tuple[str, ...]:
    return _texts(key, [value] if isinstance(value, str) else value, "a region or a list of regions")


def _cloud(key: str, value: Any) -> str:
    return _texts(key, [value], "the name of a cloud provider, such as 'aws'")[0]


def _secrets(key: str, value: Any) -> tuple[str, ...]:
    return _texts(key, value, "a list of names of Modal Secrets")


def _texts(key: str, value: Any, allowed: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
        raise _wrong(key, value, allowed)
    if not all(map(_is_sendable, value)):
        raise _wrong(key, value, f"{allowed} without control characters")
    return tuple(value)


def _is_sendable(text: str) -> bool:
    """Whether a text can be sent, and be part of a process's environment."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _env(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _wrong(key, value, "a dict of environment variables")
    for name, text in value.items():
        where = f"executor_config[{KEY!r}][{key!r}][{_shown(name)}]"
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ConfigError(
                f"{where} is not the name of an environment variable; use letters, digits and _"
            )
        if name.startswith(_OWN_VARIABLES):
            raise ConfigError(
                f"{where} can't be set for a task: names that begin with {', '.join(_OWN_VARIABLES)} say how "
                "its container works; set Airflow's options below airflow in config.yaml"
            )
        # Never the value: people put passwords here, although they belong into a Secret.
        if not isinstance(text, str):
            raise ConfigError(f"{where} must be a text, found {type(text).__name__}; put it in quotes")
        if not _is_sendable(text):
            raise ConfigError(f"{where} holds a character that no environment variable can have")
    return dict(value)


def _requirements(key: str, value: Any) -> tuple[str, ...]:
    texts = _texts(key, value, "a list of requirements, such as ['pandas==2.2.3']")
    return requirements.normalised(texts, f"executor_config[{KEY!r}][{key!r}]")


def _timeout(key: str, value: Any) -> float:
    allowed = (
        f"a number of seconds greater than 0 and at most {MAX_TASK_SECONDS}, for Modal ends calls after "
    )
    return _number(key, value, value, 0.001, MAX_TASK_SECONDS, f"{allowed}a day")


def _on_container_loss(key: str, value: Any) -> str:
    if value not in ("fail", "rerun"):
        raise _wrong(key, value, "'fail' or 'rerun'")
    return str(value)


def _log_lines(key: str, value: Any) -> int:
    allowed = f"a whole number from 0 to {MOST_LOG_LINES}"
    if not isinstance(value, int):
        raise _wrong(key, value, allowed)
    return int(_number(key, value, value, 0, MOST_LOG_LINES, allowed))


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "gpu": _gpu,
    "cpu": _cpu,
    "memory": _memory,
    "region": _region,
    "cloud": _cloud,
    "secrets": _secrets,
    "env": _env,
    "requirements": _requirements,
    "timeout": _timeout,
    "on_container_loss": _on_container_loss,
    "log_lines": _log_lines,
}
