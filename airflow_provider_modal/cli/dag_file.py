"""Is a local file a DAG file that the environment's scheduler will accept?

``read`` looks at the file, ``check`` parses it in a child process: whatever the file does, the command ends
in time with a sentence. The child has no database and none of the caller's ``AIRFLOW__*`` settings, as in the
environment that it is meant for; variables and connections in AIRFLOW_VAR_* and AIRFLOW_CONN_* are there.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_modal.errors import ConfigError

MAX_BYTES = 10 * 1024 * 1024
IMPORT_SECONDS = 120.0
"""What importing Airflow may take, which does not count as the file's own time."""
GRACE_SECONDS = 1.0
"""After the limit Airflow interrupts the file, which tells the line it was at; after this it is killed."""
_OUTPUT_KEPT = 4096
_FILE_NAME = re.compile(r"\w[\w .+@-]*\.py")


@dataclass(frozen=True)
class Checked:
    """What a DAG file defines.

    :param dag_ids: sorted, at least one.
    :param beside: files and packages next to it that it imports.
    """

    dag_ids: list[str]
    beside: list[str]


def require_name(name: str) -> None:
    """Make sure that ``name`` is the name of a DAG file that we put below ``dags/`` of the Volume.

    :raises ConfigError: it isn't.
    """
    if not _FILE_NAME.fullmatch(name) or len(name.encode()) > 200:
        raise ConfigError(
            f"the file name {name!r} is not allowed: use letters, digits, '_', '-', '.' and spaces, at most "
            "200 bytes, with a letter or digit first and .py at the end"
        )


def read(path: Path) -> bytes:
    """Return the content of a DAG file.

    :raises ConfigError: it is not an existing regular file of UTF-8 text with an allowed name and size.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a directory; name one DAG file")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file; name a DAG file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                f"{path} has {size / 2**20:.0f} MiB; a DAG file may have {MAX_BYTES // 2**20}: keep data "
                "elsewhere, such as on the environment's Volume"
            )
        content = path.read_bytes()
        text = content.decode("utf-8")
        require_name(path.name)
    except FileNotFoundError:
        raise ConfigError(f"DAG file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a Python file: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    if "\0" in text:
        raise ConfigError(f"{path} is not a Python file: it holds NUL bytes")
    return content


def check(path: Path, timeout: float) -> Checked:
    """Parse a DAG file in a child process.

    :param timeout: seconds that the file itself may take; importing Airflow doesn't count.
    :raises ConfigError: it does not parse, takes too long or defines no DAG; the text names the line.
    """
    messages: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="modalflow-check-") as folder:
        with _child(path.resolve(), timeout, Path(folder)) as child:
            ended_in_time = child.follow(messages, timeout)
    result = messages[-1] if messages else {}
    if "error" in result:
        error = result["error"]
        if "AirflowTaskTimeout" in error:
            where = error.partition(": ")[0] if error.startswith("line ") else ""
            raise ConfigError(_too_slow(path, timeout, f" (it was at {where})" if where else ""))
        raise ConfigError(f"{path} does not parse: {error}{_hint(error)}")
    if "dag_ids" in result:
        if not result["dag_ids"]:
            raise ConfigError(
                f"{path} defines no DAG: call the function that is decorated with @dag, or assign the DAG to "
                "a name of the module"
            )
        return Checked(result["dag_ids"], result["beside"])
    if not ended_in_time:
        if messages:
            raise ConfigError(_too_slow(path, timeout))
        raise ConfigError(
            f"{path} was not checked: Airflow's import took longer than {IMPORT_SECONDS:g} s here; skip this "
            "with --no-check"
        )
    raise ConfigError(f"{path} {child.how_it_ended()}")


def _too_slow(path: Path, timeout: float, where: str = "") -> str:
    return (
        f"{path} takes longer than {timeout:g} s to parse{where}: move slow work into tasks, or raise "
        "scheduler.parse_timeout_seconds in the environment's configuration"
    )


def _hint(error: str) -> str:
    if "ModuleNotFoundError" in error:
        return (
            "\nInstall the module here, and list it under image.pip or in the DAG tree's requirements.txt; "
            "or skip this check with --no-check."
        )
    if "Variable" in error and ("NOT_FOUND" in error or "does not exist" in error):
        return "\nSet AIRFLOW_VAR_{NAME} for this check, or skip it with --no-check."
    return ""


class _Child:
    """The checking process, its messages and the end of its output."""

    def __init__(self, process: subprocess.Popen[bytes], results: int) -> None:
        self._process = process
        self._results = results
        self._pending = b""
        self._output = b""

    def follow(self, messages: list[dict[str, Any]], timeout: float) -> bool:
        """Collect messages until the result, the process's end or its deadline (False)."""
        deadline = time.monotonic() + IMPORT_SECONDS
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            selector.register(self._process.stdout.fileno(), selectors.EVENT_READ)
            while time.monotonic() < deadline:
                # Not until the pipes are closed: a program that the file started may hold them for ever.
                ended = self._process.poll() is not None
                events = selector.select(0 if ended else min(0.1, deadline - time.monotonic()))
                for key, _ in events:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    elif key.fd == self._results:
                        for message in self._decoded(data):
                            messages.append(message)
                            if "parsing" not in message:
                                return True
                            deadline = time.monotonic() + timeout + GRACE_SECONDS
                    else:
                        self._output = (self._output + data)[-_OUTPUT_KEPT:]
                if ended and not events:
                    return True
        return False

    def how_it_ended(self) -> str:
        """Return how a process without a result ended, with the last line of its output."""
        code = self._process.wait()
        how = (
            f"ends the process that parses it ({signal.Signals(-code).name})"
            if code < 0
            else f"ends the process that parses it (exit code {code})"
        )
        lines = self._output.decode(errors="replace").strip().splitlines()
        return f"{how}: {lines[-1]}" if lines else how

    def _decoded(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


@contextmanager
def _child(file: Path, timeout: float, folder: Path) -> Iterator[_Child]:
    """Start the checking process in a process group of its own, which is killed in the end."""
    results, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow_provider_modal.cli.dag_check", str(file), str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(timeout, folder),
            pass_fds=[writing],
            start_new_session=True,
        )
    finally:
        os.close(writing)
    try:
        yield _Child(process, results)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It ended and left no process behind.
            pass
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(results)


def _environment(timeout: float, folder: Path) -> dict[str, str]:
    from airflow_provider_modal.cli.dag_check import NO_DATABASE

    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}
    return {
        **kept,
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2:///none?host={NO_DATABASE}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "",
        "AIRFLOW__CORE__EXECUTOR": "airflow_provider_modal.executors.ModalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": str(timeout),
        # Deep enough to hold the frame of the user's file, whatever libraries it went through.
        "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACK_DEPTH": "100",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
