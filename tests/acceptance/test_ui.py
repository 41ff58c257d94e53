"""Airflow's own UI while ``modalflow ui`` runs: who gets in, what a person does there, and what is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_provider_modal.names import ResourceNames
from tests.acceptance.deployment import MODALFLOW, Deployment, run
from tests.acceptance.modal_target import PATIENCE
from tests.acceptance.recorder import Recorder


class Browser:
    """What a browser does, without one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token: str | None = None

    def ask(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
        """Return status and answer: parsed JSON where it is that."""
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/html"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120 * PATIENCE) as answer:
                status, content, kind = answer.status, answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            status, content, kind = error.code, error.read(), error.headers.get_content_type()
        return status, json.loads(content) if kind == "application/json" else content.decode()

    def log_in(self, user: str, password: str) -> int:
        """Log in and return the status."""
        status, answer = self.ask("/auth/token", {"username": user, "password": password})
        self.token = answer["access_token"] if status == 201 else None
        return status


@contextmanager
def served(deployment: Deployment) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """Run the command until it has said where the UI is; end it as Ctrl-C does."""
    command = [MODALFLOW, "ui", "--no-browser", "--json"]
    process = subprocess.Popen(
        command, env=deployment.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line), process
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120 * PATIENCE)
        assert process.returncode == 0, said
        assert "path=/api/v2/dags" in said, said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_person_logs_in_triggers_a_dag_and_reads_its_log(recorded: Deployment, recorder: Recorder) -> None:
    passed = recorded.trigger("passed_on")
    with served(recorded) as (told, _):
        browser = Browser(told["url"])
        status, page = browser.ask("/")
        assert status == 200 and '<div id="root"' in page
        assert browser.ask("/api/v2/dags")[0] == 401
        assert browser.ask("/ui/dags")[0] == 401
        # The execution API would give secrets to whoever has a task's token; here it is no more than a page.
        assert browser.ask("/execution/health") == (200, page)
        assert browser.log_in(told["user"], "guessed") == 401
        assert browser.log_in(told["user"], told["password"]) == 201

        status, listed = browser.ask("/api/v2/dags")
        assert status == 200 and "recorded_single" in {dag["dag_id"] for dag in listed["dags"]}
        status, begun = browser.ask("/api/v2/dags/recorded_single/dagRuns", {"logical_date": None})
        assert status == 200, begun
        run_id = begun["dag_run_id"]
        recorder.wait_for(f"{run_id}:start")
        recorder.release(f"{run_id}:start")
        assert recorded.finished("recorded_single", run_id)["state"] == "success"
        of_task = f"/api/v2/dags/recorded_single/dagRuns/{run_id}/taskInstances/only"
        status, log = browser.ask(f"{of_task}/logs/1")
        events = [line["event"] for line in log["content"]]
        assert status == 200 and "Done. Returned value was: None" in events, events

        assert recorded.finished("passed_on", passed)["state"] == "success"
        of_task = f"/api/v2/dags/passed_on/dagRuns/{passed}/taskInstances/together"
        # What the UI shows of a value that is on the Volume.
        status, shown = browser.ask(f"{of_task}/xcomEntries/return_value")
        assert status == 200 and shown["value"]["type"] == "list", shown
    # As modal's own command line has it.
    of_run = f"xcom/passed_on/{passed}"
    command = [sys.executable, "-m", "modal", "volume", "get", ResourceNames(recorded.name).volume]
    value = run([*command, shown["value"]["path"], "-"], recorded.environ).stdout
    assert shown["value"]["path"].startswith(f"{of_run}/together/-1/") and value.startswith("[2, 200000]")
    apps = json.loads(run([sys.executable, "-m", "modal", "app", "list", "--json"], recorded.environ).stdout)
    # The names of the columns differ between versions of modal.
    rows = [[str(value) for value in app.values()] for app in apps]
    assert [row for row in rows if ResourceNames(recorded.name).ui_app in row and "stopped" in row], rows
