"""``modalflow ui``: Airflow's own UI, for as long as the command runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from airflow_provider_modal.cli import modal_access
from airflow_provider_modal.cli.options import environment_command, json_option
from airflow_provider_modal.cli.output import Steps, note, print_text
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.ui.ephemeral import Served

FIRST_PAGE_SECONDS = 600.0
"""As long as Modal may take to start a container."""
_ASK_SECONDS = 30.0
_UNASKED_PATHS = ("/static/", "/auth/static/")


@click.command()
@click.option("--browser/--no-browser", default=None, help="Open a browser.  [default: on a terminal]")
@click.option("--quiet", is_flag=True, help="Don't show the requests as they come.")
@json_option
@environment_command
def ui(resources: ResourceNames, as_json: bool, browser: bool | None, quiet: bool) -> None:
    """Serve Airflow's own UI until Ctrl-C.

    The UI runs in a container on Modal and costs what the container costs; it needs no port of this machine.
    It is never reachable without a login: with the users of the configuration's section ui, or with a
    password that is made for this time and shown here. Triggers and clears wake the scheduler.

    \b
    Examples:
      modalflow ui --env dev
      modalflow ui --env dev --no-browser --json

    With --json, one line {"url", "user", "password", "users"} comes once the UI answers; then it serves on.
    Needs a created environment. Nothing is left running at the end.
    """
    from airflow_provider_modal.ui import ephemeral

    access = modal_access.connect(resources)
    manifest = access.manifest
    # As Ctrl-C, so that what ends this process in a script leaves nothing running either.
    signal.signal(signal.SIGTERM, _interrupt)
    with Steps() as steps:
        steps("UI", "started")
        with ephemeral.serve(resources, manifest) as served, _requests_shown(served, quiet):
            _await_first_page(served)
            steps("UI", "ready")
            _tell(served, as_json)
            if browser or (browser is None and sys.stdout.isatty() and not as_json):
                webbrowser.open(served.url)
            try:
                while True:
                    signal.pause()
            except KeyboardInterrupt:
                note("stopping the UI ...")
    note("The UI is stopped; nothing of it is left running.")


def _tell(served: Served, as_json: bool) -> None:
    if as_json:
        [name] = served.users if served.password is not None else [None]
        # One line: whoever reads it can't wait for the end of the output.
        told = {"url": served.url, "user": name, "password": served.password, "users": served.users}
        print_text(json.dumps(told, ensure_ascii=False))
        sys.stdout.flush()
        return
    print_text(f"URL:       {served.url}")
    if served.password is not None:
        print_text(f"User:      {', '.join(served.users)}")
        print_text(
            f"Password:  {served.password}   (for this time; config.yaml's section ui has lasting users)"
        )
    elif served.users:
        print_text(f"Users:     {', '.join(sorted(served.users))}   (section ui of the configuration)")
    else:
        print_text("Users:     those of the auth manager that the configuration names")
    print_text("Ctrl-C ends it.")


def _await_first_page(served: Served) -> None:
    """Ask for a page until one comes, which starts the container before a person waits for it.

    :raises ModalflowError: the container does not serve.
    """
    ends = time.monotonic() + FIRST_PAGE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{served.url}/api/v2/version", timeout=_ASK_SECONDS):
                return
        except urllib.error.HTTPError as error:
            found = f"it answers {error.code}"
            # Modal answers 5xx while a container can't start; a 4xx is an answer of Airflow's.
            if error.code < 500:
                return
        except OSError as error:
            found = f"{type(error).__name__}: {error}"
        if time.monotonic() > ends:
            raise ModalflowError(
                f"the UI does not come up ({found}); why is in its log: modal app logs {served.app_id}"
            )
        time.sleep(1)


@contextmanager
def _requests_shown(served: Served, quiet: bool) -> Iterator[None]:
    """Show on stderr what the UI's container prints: its requests, its warnings."""
    if quiet:
        yield
        return
    follower = subprocess.Popen(
        [sys.executable, "-m", "modal", "app", "logs", "--follow", served.app_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    reader = threading.Thread(target=_show, args=(follower,), name="ui-requests", daemon=True)
    reader.start()
    try:
        yield
    finally:
        follower.terminate()
        follower.wait()
        reader.join()


def _show(follower: subprocess.Popen[str]) -> None:
    assert follower.stdout is not None
    for line in follower.stdout:
        if line.strip() and not any(path in line for path in _UNASKED_PATHS):
            note(line.rstrip())


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
