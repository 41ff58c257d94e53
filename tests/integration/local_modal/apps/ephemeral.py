"""Runs for as long as its client."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("ephemeral")


@app.function()
def work(x: int) -> tuple[int, str]:
    print(f"working on {x}")
    return x + 1, os.environ["MODAL_TASK_ID"]


@app.function()
def wait_for_ever() -> None:
    time.sleep(600)


@app.function()
def until_told() -> str:
    told: str = modal.Queue.from_name("told", create_if_missing=True).get()
    return told


@app.local_entrypoint()
def main(count: int = 1) -> None:
    for number in range(count):
        print("result", work.remote(number))


if __name__ == "__main__":
    with modal.enable_output(), app.run():
        print("result", work.remote(41)[0], flush=True)
        wait_for_ever.spawn()
