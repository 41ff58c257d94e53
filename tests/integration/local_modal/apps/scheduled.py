"""Functions that the server calls by itself."""

from __future__ import annotations

import os
import time

import modal

app = modal.App(os.environ.get("TEST_APP_NAME", "scheduled"))


@app.function(schedule=modal.Period(seconds=1), scaledown_window=10)
def tick() -> None:
    modal.Queue.from_name("ticks", create_if_missing=True).put(time.time())


@app.function(schedule=modal.Cron("0 6 * * 1", timezone="Europe/Berlin"))
def weekly() -> None:
    modal.Queue.from_name("weekly", create_if_missing=True).put("fired")
