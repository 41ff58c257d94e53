"""Does ModalExecutor keep to the BaseExecutor of the installed Airflow, flag by flag and method by method?

A flag or method that is new in Airflow fails here: decide what it means for this executor, then add it.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from typing import Any

import pytest

# Before Airflow is imported: it writes its configuration file into its home.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="modalflow-compat-airflow-"))

from airflow.executors.base_executor import BaseExecutor

from airflow_provider_modal.executors import ModalExecutor

FLAGS: dict[str, Any] = {
    "is_local": False,
    "is_production": True,
    "serve_logs": False,
    "supports_ad_hoc_ti_run": False,
    "supports_multi_team": True,
    "supports_callbacks": True,
    "supports_connection_test": True,
    "pre_assigns_external_executor_id": True,
    # Since 3.4: kinds of workloads instead of a flag each; and keys of task instances by their UUID.
    "supported_workload_types": None,
    "supports_task_instance_uuid": False,
}
"""What each flag is here; None: its content is compared elsewhere."""

NO_FLAGS = {"callback_sink", "job_id", "jwt_generator", "name", "sentry_integration"}
"""Attributes that Airflow sets, and its base class keeps."""

OWN = {
    "change_state",
    "debug_dump",
    "end",
    "fail_connection_test",
    "get_cli_commands",
    "get_task_log",
    "queue_workload",
    "revoke_task",
    "start",
    "sync",
    "terminate",
    "try_adopt_task_instances",
}
"""What ModalExecutor does in a way of its own."""

INHERITED = {
    "fail",
    "get_event_buffer",
    "has_task",
    "heartbeat",
    "log_task_event",
    "order_queued_tasks_by_priority",
    "queued",
    "running_state",
    "run_workload",
    "send_callback",
    "slots_available",
    "slots_occupied",
    "success",
    "trigger_connection_tests",
    "trigger_tasks",
    # Since 3.4.
    "get_streaming_task_log",
    "get_task_key",
    "get_workload_key",
    "queued_callbacks",
    "queued_connection_tests",
    "queued_tasks",
    "trigger_workloads",
}
"""What Airflow's base class does well."""


def _public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, property | staticmethod | classmethod)


METHODS = sorted(name for name in _public(BaseExecutor) if _is_method(vars(BaseExecutor)[name]))


def test_every_flag_of_airflow_has_a_meaning_here() -> None:
    flags = _public(BaseExecutor) - set(METHODS) - NO_FLAGS
    assert flags <= set(FLAGS), f"new in this Airflow: {sorted(flags - set(FLAGS))}"
    # An instance, since 3.4 has properties in place of some flags; __init__ would read the configuration.
    executor = object.__new__(ModalExecutor)
    for name in flags:
        if FLAGS[name] is not None:
            assert getattr(executor, name) == FLAGS[name], name


def test_every_method_of_airflow_is_known() -> None:
    methods = set(METHODS) - set(FLAGS)
    assert methods <= OWN | INHERITED, f"new in this Airflow: {sorted(methods - OWN - INHERITED)}"
    own = {
        name
        for kind in ModalExecutor.__mro__[: ModalExecutor.__mro__.index(BaseExecutor)]
        for name in vars(kind)
    }
    assert methods & own == methods & OWN


@pytest.mark.parametrize("name", [*sorted(OWN & set(METHODS)), "_process_workloads", "__init__"])
def test_whatever_airflow_passes_is_taken(name: str) -> None:
    theirs = inspect.signature(getattr(BaseExecutor, name))
    ours = inspect.signature(getattr(ModalExecutor, name))
    kinds = {parameter.kind for parameter in ours.parameters.values()}
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:
        return
    for wanted in theirs.parameters.values():
        assert wanted.name in ours.parameters, f"{name} gets {wanted.name!r} in this Airflow"
        offered = ours.parameters[wanted.name]
        assert offered.kind == wanted.kind, f"{name}: {wanted.name!r} is passed otherwise in this Airflow"
        if wanted.default is not inspect.Parameter.empty:
            assert offered.default == wanted.default, f"{name}: {wanted.name!r} may be left out"
    for offered in ours.parameters.values():
        needless = offered.name in theirs.parameters or offered.default is not inspect.Parameter.empty
        assert needless, f"{name} wants {offered.name!r}, which this Airflow does not pass"


def test_workloads_that_can_be_made_calls_are_the_ones_asked_for() -> None:
    from airflow_provider_modal.executors.af3 import KINDS

    types = getattr(ModalExecutor, "supported_workload_types", None)
    if types is not None:
        assert {kind.value for kind in types} == KINDS
    else:
        assert ModalExecutor.supports_callbacks and ModalExecutor.supports_connection_test
