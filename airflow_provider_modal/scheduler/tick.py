"""Is anything due? Asked on a schedule, by a process that must stay cheap: it never imports Airflow.

The tick is also what repairs lost wake-ups, so it asks for a run even when somebody else seems to have.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_modal import airflow_settings, wakeup


def tick() -> dict[str, Any]:
    """Ask for a scheduler run; so far something always counts as due.

    :raises modal.exception.Error: Modal does not answer; the next tick tries again.
    """
    started = wakeup.request_run(airflow_settings.deployed_names(), "schedule", force=True)
    return {"due": True, "started": started}
