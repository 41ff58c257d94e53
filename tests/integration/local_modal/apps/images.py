"""Functions of different images."""

from __future__ import annotations

import os
import sys

import modal

app = modal.App("images")


@app.function(image=modal.Image.debian_slim())
def usual() -> str:
    return sys.executable


@app.function(image=modal.Image.from_registry("example/other:1.2").workdir("/nowhere/on/the/host"))
def other() -> list[str]:
    return [sys.executable, os.getcwd()]
