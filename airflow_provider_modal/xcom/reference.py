"""What stands in Airflow's database for a value that is on the Volume?

A JSON object of this form, which Airflow's UI shows as it is:

    {"__modalflow_xcom__": 1, "type": "list", "bytes": 73400, "path": "xcom/dag/run/task/-1/return_value...",
     "encoding": "json", "compression": "gzip", "stored_bytes": 9120, "sha256": "..."}

A value of a user's that has this key is never taken for one: it goes onto the Volume itself, however small.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from airflow_provider_modal import names
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume.paths import inner_path, safe_path

MARK = "__modalflow_xcom__"
FORMAT = 1

Encoding = Literal["json", "pickle"]
Compression = Literal["gzip", "none"]


class ForeignReferenceError(ModalflowError):
    """A reference is of another release, or leads to what is no XCom."""


@dataclass(frozen=True)
class Reference:
    """Where a value is.

    :param type: of the value, as Python calls it; for people.
    :param bytes: length of the value as JSON or pickle.
    :param path: of its file on the Volume.
    :param stored_bytes: length of the file; ``sha256`` of it, likewise.
    """

    type: str
    bytes: int
    path: str
    encoding: Encoding
    compression: Compression
    stored_bytes: int
    sha256: str

    def to_value(self) -> dict[str, Any]:
        """Return what goes into the database."""
        return {MARK: FORMAT, **asdict(self)}

    @classmethod
    def from_value(cls, value: Any) -> Reference | None:
        """Return the reference that a value of the database is; None if it is a value itself.

        :raises ForeignReferenceError: it is one, but not of this release, or leads out of the XComs.
        """
        if not is_marked(value):
            return None
        try:
            if value[MARK] != FORMAT:
                raise ValueError(f"format {value[MARK]!r}")
            found = cls(**{f.name: value[f.name] for f in fields(cls)})
            if not inner_path(found.path).startswith(f"{names.XCOM_FOLDER}/"):
                raise ValueError(f"path {found.path!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ForeignReferenceError(
                f"the XCom's reference can't be read here ({type(error).__name__}: {error}): it was written "
                "by another release; use the same version of airflow-provider-modal where XComs are read"
            ) from None
        return found


def is_marked(value: Any) -> bool:
    """Return whether a value looks like a reference."""
    return isinstance(value, Mapping) and MARK in value


def new_path(
    dag_id: str | None, run_id: str | None, task_id: str | None, map_index: int | None, key: str | None
) -> str:
    """Return a path on the Volume for one value, different each time and without a suffix."""
    index = -1 if map_index is None else map_index
    folder = safe_path(dag_id or "", run_id or "", task_id or "", str(index))
    return f"{names.XCOM_FOLDER}/{folder}/{safe_path(key or '')}.{uuid.uuid4().hex}"
