"""The entry process of a scheduler's or triggerer's container, as a program that tests talk to: JSON lines
in and out.

A process of its own, because Modal's SDK decides when it is imported which server it talks to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.config import EnvironmentConfig, SchedulerConfig
from airflow_provider_modal.container.zygote import Child, Zygote
from airflow_provider_modal.names import ResourceNames

ROOT = Path(__file__).parents[2]
MAX_RUN_SECONDS = 60.0


def _config(max_run_seconds: float) -> EnvironmentConfig:
    scheduler = SchedulerConfig(parse_timeout_seconds=20, max_run_seconds=max_run_seconds)
    return EnvironmentConfig(connection_string="", scheduler=scheduler)


class HolderProcess:
    """The test's side: one program with its zygote, for any number of environments and databases."""

    def __init__(self, environ: Mapping[str, str], root: Path) -> None:
        config = _config(MAX_RUN_SECONDS)
        own = {name: value for name, value in environ.items() if not name.startswith("AIRFLOW")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.holder_driver"],
            cwd=ROOT,
            env={
                **own,
                **airflow_settings.function_environment(config, "nobody", "scheduler"),
                airflow_settings.CONNECTION: "postgresql+psycopg2://nobody@127.0.0.1:1/nothing",
                airflow_settings.VOLUME_PATH: str(root / "no-mount"),
                "AIRFLOW__API_AUTH__JWT_SECRET": "a-signing-key-of-the-tests",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "dev")]),
                "TMPDIR": str(root),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(root / "stderr").open("w"),
            text=True,
        )

    def send(self, **request: Any) -> None:
        """Ask for something; ``receive`` returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """Return the answer to the last request."""
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith("ANSWER "):
            assert line, "the program ended"
        return json.loads(line.removeprefix("ANSWER "))

    def interrupt(self) -> None:
        """Interrupt what it does, as Modal does when it takes a container away."""
        self._process.send_signal(signal.SIGINT)

    def ask(self, **request: Any) -> Any:
        """Ask for something and return the answer."""
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        """End the program and its zygote."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class _InDatabase:
    """The program's zygote; children use the request's database."""

    def __init__(self, zygote: Zygote, request: Mapping[str, Any]) -> None:
        self._zygote = zygote
        self._request = request
        self.children: list[Child] = []

    def spawn(self, target: str, args: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Child:
        arguments = {"url": self._request["url"], "target": target, "arguments": dict(args)}
        child = self._zygote.spawn(
            "tests.support.airflow_children:in_database",
            arguments,
            {**(env or {}), **self._request.get("environ", {})},
        )
        self.children.append(child)
        return child


def _answer(zygote: Zygote, request: dict[str, Any]) -> Any:
    import modal

    from airflow_provider_modal import wakeup
    from airflow_provider_modal.errors import ModalflowError
    from airflow_provider_modal.log import reader
    from airflow_provider_modal.scheduler import holder
    from airflow_provider_modal.triggerer import slices
    from airflow_provider_modal.volume.files import VolumeFiles

    resources = ResourceNames(request["env"])
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
    state = modal.Dict.from_name(resources.state_dict, create_if_missing=True)
    state.hydrate()
    if request["op"] == "upload":
        files = VolumeFiles.open(resources)
        files.write_many({f"dags/{path}": text.encode() for path, text in request["files"].items()})
        for path in request.get("removed", []):
            files.remove(f"dags/{path}")
        return None
    if request["op"] == "overwrite":
        VolumeFiles.open(resources).write(request["path"], request["text"].encode())
        return None
    if request["op"] == "log":
        return list(reader.read(VolumeFiles.open(resources), *request["task"]))
    if request["op"] == "wish":
        return state.put("wake", {"reason": "the test", "at": 0}, skip_if_exists=True)
    if request["op"] == "take":
        return wakeup.take_wish(state)
    config = _config(request.get("max_run_seconds", MAX_RUN_SECONDS))
    os.environ[airflow_settings.SETTINGS] = json.dumps(config.to_settings())
    os.environ[airflow_settings.ENV_NAME] = request["env"]
    os.environ[airflow_settings.CONNECTION] = request["url"].replace("postgresql:", "postgresql+psycopg2:", 1)
    os.environ[airflow_settings.DEPLOYMENT] = request.get("deployment", "current")
    in_database = _InDatabase(zygote, request)
    try:
        if request["op"] == "triggers":
            seconds = request.get("seconds", 300.0)
            with mock.patch.multiple(slices, LINGER_SECONDS=1.5, LOOK_SECONDS=0.2):
                return slices.run(in_database, "the test", seconds)  # type: ignore[arg-type]
        with mock.patch.object(holder, "PREDECESSOR_SECONDS", request.get("patience", 15.0)):
            return holder.run(in_database, "the test")  # type: ignore[arg-type]
    except KeyboardInterrupt:
        return {"interrupted": [child.wait(0) is not None for child in in_database.children]}
    except ModalflowError as error:
        return {"raised": type(error).__name__, "message": str(error)}


def main() -> None:
    """Answer requests until there are no more."""
    airflow_settings.apply()
    os.environ["AIRFLOW__CORE__EXECUTOR"] = "tests.support.executors.RecordingExecutor"
    zygote = Zygote.start("airflow_provider_modal.scheduler.af3:warm_up")
    for line in sys.stdin:
        print("ANSWER " + json.dumps(_answer(zygote, json.loads(line))), flush=True)
    zygote.stop()


if __name__ == "__main__":
    main()
