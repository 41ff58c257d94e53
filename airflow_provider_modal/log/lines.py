"""What do lines of ours look like in a task's log?"""

from __future__ import annotations

import json
from datetime import datetime, timezone

LOGGER = "modalflow"
"""Name under which lines of ours appear."""
INCOMPLETE = "log_incomplete"
"""Value of a line that tells of a container that could not ship its log to the end."""


def line(level: str, event: str, **values: object) -> bytes:
    """Return a line of ours in the form of Airflow 3's task logs, with its end.

    :param level: ``info``, ``warning`` or ``error``.
    """
    timestamp = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    record = {"timestamp": timestamp, "level": level, "event": event, "logger": LOGGER, **values}
    return json.dumps(record).encode() + b"\n"
