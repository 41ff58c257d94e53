"""A server that is killed again and again, at random moments, loses nothing that it has acknowledged."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from local_modal.testing import LocalModal, wait_until
from tests.integration.local_modal.conftest import APPS, client, deploy, start_client

pytestmark = pytest.mark.one_sdk

KILLS = 3
HAMMER = """
import threading

def acknowledged(kind, number, answer=None):
    with lock, open(journal, "a") as file:
        file.write(json.dumps([kind, number, answer]) + "\\n")

def hammer(kind, act):
    number = 0
    while not os.path.exists(stop):
        number += 1
        try:
            answer = act(number)
        except Exception as error:  # not acknowledged: nothing is known of this one
            failed(kind, error)
        else:
            acknowledged(kind, number, answer)

def failed(kind, error):
    with lock, open(journal, "a") as file:
        file.write(json.dumps(["failed", kind, repr(error)]) + "\\n")

lock = threading.Lock()
entries = modal.Dict.from_name("hammered", create_if_missing=True)
items = modal.Queue.from_name("hammered", create_if_missing=True)
square = f("square")
work = {
    "dict": lambda number: entries.put(number, number),
    "queue": lambda number: items.put(number),
    "secret": lambda n: modal.Secret.objects.create(f"s-{n}", {"N": str(n)}, allow_existing=True),
    "spawn": lambda number: square.spawn(number).object_id,
    "map": lambda number: list(square.map(range(number, number + 3))),
}
threads = [threading.Thread(target=hammer, args=pair) for pair in work.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
result = "done"
"""
LOOK = """
result = {
    "dict": dict(modal.Dict.from_name("hammered").items()),
    "queue": modal.Queue.from_name("hammered").get_many(5000, block=False),
    "secret": [secret.name for secret in modal.Secret.objects.list()],
    "spawn": [modal.FunctionCall.from_id(call).get(timeout=60) for call in calls],
}
result["dict"] = sorted(result["dict"])
"""


def read(journal: Path) -> dict[str, list[list[Any]]]:
    entries = defaultdict(list)
    for line in journal.read_text().splitlines() if journal.exists() else ():
        kind, *rest = json.loads(line)
        entries[kind].append(rest)
    return entries


@pytest.mark.parametrize("seed", [7])
def test_nothing_acknowledged_is_lost(fresh_local_modal: LocalModal, tmp_path: Path, seed: int) -> None:
    server, chance = fresh_local_modal, random.Random(seed)
    deploy(server, "basics")
    journal, stop = tmp_path / "journal", tmp_path / "stop"
    hammering = start_client(server, HAMMER, journal=str(journal), stop=str(stop))
    for _ in range(KILLS):
        before = {kind: len(done) for kind, done in read(journal).items()}
        wait_until(
            lambda before=before: all(
                len(read(journal)[kind]) > before.get(kind, 0) for kind in ("dict", "queue", "spawn")
            ),
            60,
            "the clients got on after a restart",
        )
        wait_until(lambda: chance.random() < 0.1)  # each time asks after a while
        server.kill()
        server.start()
    stop.touch()
    output, errors = hammering.communicate(timeout=90)
    assert '"done"' in output, errors

    done = read(journal)
    found = client(server, LOOK, calls=[call for _, call in done["spawn"]])
    assert {number for number, _ in done["dict"]} <= set(found["dict"])
    assert {f"s-{number}" for number, _ in done["secret"]} <= set(found["secret"])
    # A put that was repeated because its answer got lost may be there twice; none is missing or out of turn.
    assert {number for number, _ in done["queue"]} <= set(found["queue"])
    assert sorted(found["queue"]) == found["queue"]
    assert found["spawn"] == [number**2 for number, _ in done["spawn"]]
    for number, squares in done["map"]:
        assert squares == [n**2 for n in range(number, number + 3)]


def test_a_redeploy_that_says_success_after_a_restart_has_deployed_the_new_code(
    fresh_local_modal: LocalModal,
) -> None:
    """The server is killed when everything has been created, and before it is published."""
    server = fresh_local_modal
    deploy(server, "versions", VERSION="one")
    look = "result = f('version', 'versions').remote()[0]"
    assert client(server, look) == "one"
    stalled = server.set_fault("stall", rpc="AppPublish", seconds=60)
    with subprocess.Popen(
        [sys.executable, "-m", "modal", "deploy", str(APPS / "versions.py")],
        env=server.env | {"VERSION": "two"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as deploying:
        wait_until(lambda: stalled.struck, 30, "it is about to publish")
        assert client(server, look) == "one"
        # It repeats its request for about a second, which may be less than a start takes.
        deploying.send_signal(signal.SIGSTOP)
        server.kill()
        server.start()
        deploying.send_signal(signal.SIGCONT)
        output = deploying.communicate(timeout=60)[0]
    assert deploying.returncode == 0, output
    assert client(server, look) == "two"


def test_of_two_first_deployments_of_one_name_one_is_refused(fresh_local_modal: LocalModal) -> None:
    """Both have found no app of that name, and made one."""
    server = fresh_local_modal
    with server.fault("stall", rpc="AppPublish", count=1, seconds=60) as stalled:
        with subprocess.Popen(
            [sys.executable, "-m", "modal", "deploy", str(APPS / "versions.py")],
            env=server.env | {"VERSION": "late"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as late:
            wait_until(lambda: stalled.struck, 30, "it is about to publish")
            deploy(server, "versions", VERSION="first")
            stalled.clear()
            output = late.communicate(timeout=60)[0]
    assert late.returncode == 1 and "Another app was deployed as 'versions'" in output
    assert client(server, "result = f('version', 'versions').remote()[0]") == "first"
