"""Airflow 3's XComs, with large values on the Volume.

Runs where tasks and triggers run; the API server shows the database's side, which for a large value says what
it is and where. Airflow itself makes JSON of a value, and a value of the JSON.
"""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

try:
    from airflow.sdk.bases.xcom import BaseXCom
except ImportError:  # before 3.1
    from airflow.sdk.execution_time.xcom import BaseXCom

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.xcom import payload, place
from airflow_provider_modal.xcom.reference import Reference, is_marked, new_path

THRESHOLD = 32768
_READ_BY_SCHEDULER = frozenset({"skipmixin_key"})
"""Keys of values that Airflow's scheduler reads, which knows no XCom backend: what a branch has skipped."""

log = logging.getLogger(__name__)


class XComNotStoredError(ModalflowError):
    """A value can't be an XCom; the message says which, and what to do."""


class VolumeXComBackend(BaseXCom):
    """``[core] xcom_backend``: values up to ``[modal] xcom_threshold_bytes`` of JSON stay in the database."""

    @staticmethod
    def serialize_value(
        value: Any,
        *,
        key: str | None = None,
        task_id: str | None = None,
        dag_id: str | None = None,
        run_id: str | None = None,
        map_index: int | None = None,
    ) -> Any:
        """Return what goes into the database: the value's JSON, or a reference to its file.

        :raises XComNotStoredError: JSON can't carry the value, and pickling is not allowed.
        :raises UnreachableError: Modal does not answer.
        """
        conf = place.configuration()
        path = new_path(dag_id, run_id, task_id, map_index, key)
        try:
            serialized = BaseXCom.serialize_value(value)
            text = json.dumps(serialized)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            if not conf.getboolean("modal", "xcom_allow_pickle", fallback=False):
                raise XComNotStoredError(
                    f"XCom {key!r} of task {task_id!r} can't be stored: {_type(value)} is not what JSON can "
                    f"carry ({error}); return something that it can, or allow pickling "
                    "(xcom.allow_pickle in config.yaml, [modal] xcom_allow_pickle in airflow.cfg)"
                ) from error
            return _stored(payload.pickle_file(value), path, value)
        threshold = conf.getint("modal", "xcom_threshold_bytes", fallback=THRESHOLD)
        if key in _READ_BY_SCHEDULER or (len(text) <= threshold and not is_marked(serialized)):
            return serialized
        return _stored(payload.json_file(text), path, value)

    @staticmethod
    def deserialize_value(result: Any) -> Any:
        """Return the value of what is in the database.

        :raises NotFoundError: its file is gone.
        :raises DamagedXComError: its file is not what was stored.
        :raises XComNotStoredError: it is a pickle, and pickling is not allowed here.
        """
        reference = Reference.from_value(result.value)
        if reference is None:
            return BaseXCom.deserialize_value(result)
        if reference.encoding == "pickle":
            # Whoever can write to the database could have code run here.
            if not place.configuration().getboolean("modal", "xcom_allow_pickle", fallback=False):
                raise XComNotStoredError(
                    f"{reference.path} is a pickle, and reading one runs its author's code; allow it "
                    "(xcom.allow_pickle in config.yaml, [modal] xcom_allow_pickle in airflow.cfg)"
                )
            return place.current().load(reference)
        return BaseXCom.deserialize_value(_Json(place.current().load(reference)))

    @classmethod
    def purge(cls, xcom: Any, *args: Any) -> None:
        """Remove the file of a value that is about to be deleted; called when a task runs again.

        A file that can't be removed must not keep the task from running: ``modalflow clean`` removes it with
        its run.
        """
        try:
            reference = Reference.from_value(getattr(xcom, "value", None))
            if reference is not None:
                place.current().remove(reference)
        except ModalflowError as error:
            log.warning("an XCom's file stays on the Volume: %s", error)


class _Json(NamedTuple):
    value: Any


def _stored(packing: AbstractContextManager[payload.Packed], path: str, value: Any) -> dict[str, Any]:
    with packing as packed:
        return place.current().store(path, packed, _type(value)).to_value()


def _type(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
