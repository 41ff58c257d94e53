"""An environment's App whose scheduler and triggerer only say why they were started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import modal

from airflow_provider_modal import names, provision
from airflow_provider_modal.names import ResourceNames

START_SECONDS = 180.0


class SchedulerApp:
    """A deployed App whose runs only report."""

    def __init__(self, resources: ResourceNames) -> None:
        self.state = modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        self._reasons = modal.Queue.from_name(resources.events_queue, create_if_missing=True).hydrate()
        queue = resources.events_queue
        app = modal.App(resources.app, include_source=False)

        def report(reason: str) -> None:
            modal.Queue.from_name(queue).put(reason)

        def report_triggers(reason: str) -> None:
            modal.Queue.from_name(queue).put(reason, partition="triggers")

        app.function(name=names.SCHEDULER_RUN, serialized=True, max_containers=1)(report)
        app.function(name=names.RUN_TRIGGERS, serialized=True, max_containers=1)(report_triggers)
        app.deploy()

    def started(self) -> str:
        """Wait for the next run and return its reason."""
        reason: str = self._reasons.get(timeout=START_SECONDS)
        return reason

    def taken(self) -> None:
        """Take the wish, as a run does."""
        self.state.pop(names.WAKE_KEY, None)

    def triggers_started(self) -> str:
        """Wait for the next start of the triggerer and return its reason."""
        reason: str = self._reasons.get(timeout=START_SECONDS, partition="triggers")
        return reason

    def triggers_started_again(self) -> bool:
        """Whether another start of the triggerer has been heard of."""
        return bool(self._reasons.len(partition="triggers"))

    @property
    def wish(self) -> str | None:
        """The reason of the wish that no run has taken yet."""
        note = self.state.get(names.WAKE_KEY)
        return note["reason"] if note else None


@contextmanager
def scheduler_app(env: str) -> Iterator[SchedulerApp]:
    """Deploy such an App for the time of the block."""
    resources = ResourceNames(env)
    deployed = SchedulerApp(resources)
    try:
        yield deployed
    finally:
        provision.destroy(env)
