"""A DAG that uses what lies beside it; RECORDER_PORT is replaced before the upload."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timezone

from airflow.sdk import DAG, get_current_context, task
from include.words import WORD
from words import WORD as WORD_BY_ITS_OWN_NAME
from words_plugin import NeverByItself

PORT = int("RECORDER_PORT")


def record(event: str, *, wait: bool = False, **facts: str) -> None:
    """Tell the recorder, and with ``wait`` stay here until it lets go."""
    message = {"event": f"{get_current_context()['run_id']}:{event}", "wait": wait, **facts}
    with socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.sendall(json.dumps(message).encode() + b"\n")
        connection.makefile().readline()


with DAG("synced", schedule=NeverByItself(), start_date=datetime(2025, 1, 1, tzinfo=timezone.utc)):

    @task
    def first() -> None:
        """Wait until the files have changed."""
        record("first", wait=True, word=WORD)

    @task
    def second(macro: str) -> None:
        """Tell which files these are."""
        own = WORD_BY_ITS_OWN_NAME
        record("second", word=WORD, own=own, macro=macro, version=os.environ["MODALFLOW_DAG_VERSION"])

    first() >> second("{{ macros.words.word() }}")
