"""What of an environment is there on Modal? Looked up by name, stopped and deleted."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.modal_errors import translated
from airflow_provider_modal.steps import Status


def known(kind: Any, name: str) -> bool:
    """Return whether Modal has an object of this class of the SDK and name."""
    from modal import exception

    try:
        kind.from_name(name).hydrate()
    except exception.NotFoundError:
        return False
    return True


def find_app(name: str) -> Any:
    """Return the deployed App of this name; None if there is none."""
    import modal
    from modal import exception

    try:
        return modal.App.lookup(name)
    except exception.NotFoundError:
        return None


def stop_app(name: str) -> Status:
    """Stop the App of this name, if there is one."""
    with translated(f"stop App {name}"):
        app = find_app(name)
        if app is None:
            return "absent"
        if hasattr(app, "stop"):
            app.stop()
            return "deleted"
    # Before modal 1.6 only its command line can do it.
    stopped = subprocess.run(
        [sys.executable, "-m", "modal", "app", "stop", "--yes", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if stopped.returncode != 0:
        raise ModalflowError(f"can't stop App {name}: {stopped.stdout.strip()}")
    return "deleted"


def delete(kind: Any, name: str) -> Status:
    """Delete an object of this class of the SDK and name, if there is one."""
    from modal import exception

    with translated(f"delete {kind.__name__} {name}"):
        try:
            kind.objects.delete(name)
        except exception.NotFoundError:
            return "absent"
    return "deleted"
