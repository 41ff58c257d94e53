"""Which folders of DAG runs may go: their logs, their XComs?

Both lie below ``{dag}/{run}/``, one segment each, so a run's data goes as a whole and the database is only
asked about runs. A name that is too long to be read back from its segment is recognised there by making the
segment again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from airflow_provider_modal.retention.found import Ask, Found, Policy, batches
from airflow_provider_modal.volume.files import VolumeFiles

PARALLEL_LISTINGS = 8
GONE, OLD, KEPT = "gone", "old", "kept"
"""What the database says of a run: it has none; it ended long ago; it may still be needed."""
_BECAUSE = {GONE: "the run is not in the database any more", OLD: "the run ended long ago"}


class RunFolders:
    """Folders of DAG runs.

    :param name: of the kind.
    :param root: where the folders of DAGs are.
    :param prefixes: what the segments of a DAG and of a run begin with.
    :param verdicts: those with which a run's folder may go.
    """

    def __init__(
        self,
        name: str,
        files: VolumeFiles,
        ask: Ask,
        policy: Policy,
        *,
        root: str,
        prefixes: tuple[str, str] = ("", ""),
        verdicts: tuple[str, ...] = (GONE, OLD),
    ) -> None:
        self.name = name
        self._files = files
        self._ask = ask
        self._policy = policy
        self._root = root
        self._prefixes = prefixes
        self._verdicts = verdicts

    def find(self) -> Iterator[Found]:
        """Yield the folders of runs that may go, with what they hold."""
        with ThreadPoolExecutor(PARALLEL_LISTINGS, "retention") as pool:
            for paths in batches(self._folders()):
                doomed = [(path, verdict) for path, verdict in self._judged(paths).items() if verdict != KEPT]
                sizes = pool.map(self._size, [path for path, _ in doomed])
                for (path, verdict), size in zip(doomed, sizes, strict=True):
                    yield Found(path, size, _BECAUSE[verdict], folder=True)

    def remove(self, found: Sequence[Found]) -> list[Found]:
        """Remove folders, except those of runs that were cleared or started again meanwhile."""
        removed: list[Found] = []
        for batch in batches(found):
            verdicts = self._judged([item.path for item in batch])
            doomed = [item for item in batch if verdicts[item.path] != KEPT]
            self._files.remove_many((item.path for item in doomed), recursive=True)
            removed += doomed
        self._remove_empty({item.path.rpartition("/")[0] for item in removed})
        return removed

    def _folders(self) -> Iterator[str]:
        dag_prefix, run_prefix = self._prefixes
        for dag in self._files.list(self._root):
            if not dag.is_dir or not dag.path.rpartition("/")[2].startswith(dag_prefix):
                continue
            for run in self._files.list(dag.path):
                if run.is_dir and run.path.rpartition("/")[2].startswith(run_prefix):
                    yield run.path

    def _judged(self, paths: Sequence[str]) -> Mapping[str, str]:
        runs = [path.split("/")[-2:] for path in paths]
        answer = self._ask(runs=runs, prefixes=list(self._prefixes), older_than=self._policy.older_than)
        return {
            path: verdict if verdict in self._verdicts else KEPT
            for path, verdict in zip(paths, answer, strict=True)
        }

    def _size(self, path: str) -> int:
        return sum(entry.size for entry in self._files.list(path, recursive=True) if entry.is_file)

    def _remove_empty(self, folders: set[str]) -> None:
        """Remove the folders of DAGs in which nothing is left."""
        self._files.remove_many(
            (path for path in sorted(folders) if not self._files.list(path)), recursive=True
        )
