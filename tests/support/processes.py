"""Whether a process lives, for tests that end some."""

from __future__ import annotations

import psutil


def is_running(pid: int) -> bool:
    """Return whether a process runs or could run again.

    A zombie has ended: an orphan stays one for as long as the machine's init likes, and the init of many
    containers never reaps.
    """
    try:
        return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False
