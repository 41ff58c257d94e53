"""Which logs may go? Those of runs with their run; those of no run, such as callbacks', by their age."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from airflow_provider_modal import names
from airflow_provider_modal.retention.found import Ask, Found, Policy
from airflow_provider_modal.retention.runs import RunFolders
from airflow_provider_modal.volume.files import VolumeFiles

PREFIXES = ("dag_id=", "run_id=")
"""What stands before a DAG's and a run's id (``log.segments.run_folder``)."""


class Logs:
    """Segments of logs."""

    name = "logs"

    def __init__(self, files: VolumeFiles, ask: Ask, policy: Policy) -> None:
        self._files = files
        self._policy = policy
        self._runs = RunFolders("logs", files, ask, policy, root=names.LOGS_FOLDER, prefixes=PREFIXES)

    def find(self) -> Iterator[Found]:
        """Yield folders of runs, then single files."""
        yield from self._runs.find()
        for folder in self._files.list(names.LOGS_FOLDER):
            if folder.path.rpartition("/")[2].startswith(PREFIXES[0]):
                continue
            for entry in self._files.list(folder.path, recursive=True):
                if entry.is_file and self._policy.now - entry.mtime > self._policy.older_than:
                    yield Found(entry.path, entry.size, "it is of no run, and old")

    def remove(self, found: Sequence[Found]) -> list[Found]:
        """Remove logs, except those of runs that were cleared or started again meanwhile."""
        single = [item for item in found if not item.folder]
        self._files.remove_many(item.path for item in single)
        return [*self._runs.remove([item for item in found if item.folder]), *single]
