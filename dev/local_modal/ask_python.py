"""How is an interpreter asked something about itself?"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

SECONDS = 60.0


async def ask(python: str, program: str) -> Any:
    """Run `program`, which prints JSON, with an interpreter of the containers; returns what it printed.

    It runs outside any directory of the user's, and with hardly any of the server's environment.

    Raises:
        OSError: the interpreter can't be started.
        ValueError: it fails, or doesn't answer within `SECONDS`.
    """
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", program),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        cwd="/",
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        raise ValueError(f"{python} told nothing about itself within {SECONDS:g} s") from None
    if process.returncode != 0:
        raise ValueError(f"{python} is not a working Python interpreter (exit code {process.returncode})")
    return json.loads(output)
