"""In which container is the worker, and how does it reach the environment's resources?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_modal import airflow_settings, names, wire
from airflow_provider_modal.container import identity
from airflow_provider_modal.volume.files import VolumeFiles
from airflow_provider_modal.worker import report

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Container:
    """Handles of the environment's resources, and who this is."""

    resources: names.ResourceNames
    state: modal.Dict
    events: modal.Queue
    files: VolumeFiles
    id: str
    call_id: str | None

    @classmethod
    def of_this_process(cls) -> Container:
        """Return the container that this process runs in; makes no call."""
        import modal

        resources = airflow_settings.deployed_names()
        return cls(
            resources=resources,
            state=modal.Dict.from_name(resources.state_dict),
            events=modal.Queue.from_name(resources.events_queue),
            files=VolumeFiles.open(resources, airflow_settings.volume_mount()),
            id=identity.container_id(),
            call_id=identity.call_id(),
        )

    def reload(self) -> None:
        """Show this container's mount what others have committed to the Volume."""
        import modal

        modal.Volume.from_name(self.resources.volume).reload()

    def retire(self) -> None:
        """Have Modal give this container no more inputs: the one at work is its last."""
        import modal.experimental

        log.warning("container %s takes no more calls, because nothing can be started in it", self.id)
        try:
            modal.experimental.stop_fetching_inputs()
        except Exception:
            log.exception("the container could not be taken out of service")

    def report(self, completion: wire.Completion, *, partition: str, wakes_scheduler: bool) -> None:
        """Tell of a dispatch's end; see ``report.report``."""
        report.report(
            self.resources,
            self.state,
            self.events,
            completion,
            partition=partition,
            wakes_scheduler=wakes_scheduler,
        )
