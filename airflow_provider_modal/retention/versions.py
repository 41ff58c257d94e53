"""Which DAG versions may go, and which contents of files with them?

A version stays while the database may ask for it, while it is one of the latest, and while its last run is
not old. Contents go with the last version that has them. Everything happens under the lock of the DAG tree,
because ``dags sync`` and the scheduler rely on contents that they find stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from airflow_provider_modal.errors import NotFoundError
from airflow_provider_modal.retention.found import Ask, Found, Policy, batches
from airflow_provider_modal.volume import dag_tree, dag_versions
from airflow_provider_modal.volume.dag_lock import DagTreeLock
from airflow_provider_modal.volume.dag_tree import FILES_FOLDER
from airflow_provider_modal.volume.dag_versions import VERSIONS_FOLDER
from airflow_provider_modal.volume.files import Entry, VolumeFiles

LOCK_WAIT_SECONDS = 30.0
UPLOAD_SECONDS = 86_400.0
"""Contents that no version refers to are those of an upload that was interrupted, once they are so old."""
_SUFFIX = ".json"


class Versions:
    """DAG versions and the contents of their files."""

    name = "versions"

    def __init__(self, files: VolumeFiles, ask: Ask, policy: Policy, lock: DagTreeLock) -> None:
        self._files = files
        self._ask = ask
        self._policy = policy
        self._lock = lock

    def find(self) -> Iterator[Found]:
        """Yield manifests first, then contents."""
        entries = {
            entry.path.rpartition("/")[2].removesuffix(_SUFFIX): entry
            for entry in self._files.list(VERSIONS_FOLDER)
            if entry.is_file and entry.path.endswith(_SUFFIX)
        }
        # Before the versions are judged: what is stored later is none of ours.
        contents = [entry for entry in self._files.list(FILES_FOLDER) if entry.is_file]
        kept = self._kept(entries)
        for digest, entry in entries.items():
            if digest not in kept:
                yield Found(entry.path, entry.size, "no run needs this version")
        needed = self._needed(kept)
        for entry in contents:
            if entry.path.rpartition("/")[2] in needed:
                continue
            if self._policy.now - entry.mtime > UPLOAD_SECONDS or self._policy.older_than < UPLOAD_SECONDS:
                yield Found(entry.path, entry.size, "a file of no version that stays")

    def remove(self, found: Sequence[Found]) -> list[Found]:
        """Remove what may still go, the manifests first, so that nobody finds a version without contents."""
        wanted = {item.path for item in found}
        with self._lock.hold("modalflow clean", LOCK_WAIT_SECONDS) as lease:
            doomed = [item for item in self.find() if item.path in wanted]
            for batch in batches(doomed):
                lease.require()
                manifests = [item.path for item in batch if item.path.startswith(f"{VERSIONS_FOLDER}/")]
                self._files.remove_many(manifests)
                self._files.remove_many(item.path for item in batch if item.path not in manifests)
        return doomed

    def _kept(self, entries: dict[str, Entry]) -> set[str]:
        latest = sorted(entries, key=lambda digest: entries[digest].mtime, reverse=True)
        kept = set(latest[: self._policy.keep_versions])
        change = dag_tree.read_change(self._files)
        kept |= {digest for digest in (dag_versions.head(self._files), change and change.digest) if digest}
        kept |= {
            digest
            for digest, entry in entries.items()
            if self._policy.now - entry.mtime <= self._policy.older_than
        }
        for batch in batches(sorted(entries.keys() - kept)):
            kept |= set(self._ask(versions=batch, older_than=self._policy.older_than))
        return kept

    def _needed(self, kept: set[str]) -> set[str]:
        """Return the sha256 of all contents that versions have which stay.

        :raises ModalflowError: one of them is damaged, so that nobody knows what it needs.
        """
        needed: set[str] = set()
        for digest in kept:
            try:
                needed |= set(dag_versions.read_version(self._files, digest).files.values())
            except NotFoundError:
                continue  # named by the database or the head, and gone already
        return needed
