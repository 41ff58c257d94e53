"""What does a DAG file define? Run as a process of its own: ``python -m ... FILE RESULT_FD``.

The process parses one file as Airflow's DAG processor would, with Airflow's own DagBag, and writes JSON lines
to the file descriptor RESULT_FD: ``{"parsing": true}`` once Airflow is imported and the file's own time
begins, at last ``{"dag_ids": [...], "beside": [...]}`` or ``{"error": str}``. Its output is the file's.

Who starts it sets the environment and the limits (``dag_file.check``). It must not be imported elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

NO_DATABASE = "/the-dag-check-has-no-database"
"""Folder of the socket in the database URL: an attempt to connect fails at once, and is recognised."""


def main(arguments: list[str]) -> None:
    """Check the file and report."""
    file, result_fd = Path(arguments[0]), int(arguments[1])
    # A program that the file starts must not inherit it: it could keep the reader waiting.
    os.set_inheritable(result_fd, False)
    with os.fdopen(result_fd, "w", encoding="utf-8") as result:

        def tell(message: dict[str, Any]) -> None:
            result.write(json.dumps(message) + "\n")
            result.flush()

        try:
            # Before Airflow is imported, which takes seconds.
            compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        except SyntaxError as error:
            line = (error.text or "").strip()
            tell({"error": f"line {error.lineno}: {type(error).__name__}: {error.msg}: {line}"})
            return
        except (ValueError, RecursionError, MemoryError) as error:
            tell({"error": f"{type(error).__name__}: {error}"})
            return
        tell(_parsed(file, lambda: tell({"parsing": True})))


def _parsed(file: Path, begins: Any) -> dict[str, Any]:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before Airflow 3.1
        from airflow.models.dagbag import DagBag

    # As the DAG processor does for the root of a bundle.
    sys.path.append(str(file.parent))
    bag = DagBag(dag_folder=os.devnull, collect_dags=False)
    begins()
    bag.process_file(str(file), only_if_updated=False)
    if bag.import_errors:
        return {"error": _explained(next(iter(bag.import_errors.values())), file)}
    for dag in bag.dags.values():
        try:
            _serialize(dag)
        except Exception as error:
            return {"error": f"DAG {dag.dag_id} can't be serialised: {error}"}
    return {"dag_ids": sorted(bag.dags), "beside": _modules_beside(file)}


def _serialize(dag: Any) -> None:
    """Serialise as the DAG processor does for the database: what fails there would be an import error."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # before Airflow 3.2
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization
    DagSerialization.to_dict(dag)


def _explained(import_error: str, file: Path) -> str:
    """Return what was raised and the line of ``file`` that led there, of an import error (a traceback)."""
    raised = _raised(import_error)
    lines = re.findall(rf'File "{re.escape(str(file))}", line (\d+)', import_error)
    where = f"line {lines[-1]}: " if lines else ""
    if NO_DATABASE in import_error:
        raised = (
            "it reads from Airflow's metadata database (a Variable, a Connection) while it is parsed; "
            "do that inside a task, or skip this check with --no-check"
        )
    return where + raised


def _raised(import_error: str) -> str:
    """Return the exception's first line: what follows the last frame, without indentation."""
    lines = import_error.strip().splitlines() or ["an error without text"]
    last_frame = max((i for i, line in enumerate(lines) if line.startswith('  File "')), default=None)
    if last_frame is None:
        return lines[0]
    return next((line for line in lines[last_frame + 1 :] if line and not line[0].isspace()), lines[-1])


def _modules_beside(file: Path) -> list[str]:
    """Return what the file imported from its own folder: that has to be on the Volume as well."""
    folder = file.parent
    beside = set()
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        if not origin:
            continue
        path = Path(origin)
        if path != file and path.is_relative_to(folder) and "site-packages" not in path.parts:
            beside.add(path.relative_to(folder).parts[0])
    return sorted(beside)


if __name__ == "__main__":
    main(sys.argv[1:])
