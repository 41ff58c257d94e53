"""Which virtualenvs may go? Those that no container has unpacked for a while: a task that wants one again has
it made anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from airflow_provider_modal.retention.found import Found, Policy
from airflow_provider_modal.venvs.store import prune
from airflow_provider_modal.volume.files import VolumeFiles


class Virtualenvs:
    """Archives of virtualenvs."""

    name = "venvs"

    def __init__(self, files: VolumeFiles, policy: Policy) -> None:
        self._files = files
        self._policy = policy

    def find(self) -> Iterator[Found]:
        """Yield what nobody used for as long as the policy says."""
        for pruned in prune(self._files, self._policy.older_than, now=self._policy.now, dry_run=True):
            yield Found(pruned.path, pruned.size, pruned.because)

    def remove(self, found: Sequence[Found]) -> list[Found]:
        """Remove what is still not used; what names an archive goes before it."""
        wanted = {item.path for item in found}
        doomed = [item for item in self.find() if item.path in wanted]
        pointers = [item.path for item in doomed if item.path.endswith(".json")]
        self._files.remove_many(pointers)
        self._files.remove_many(item.path for item in doomed if item.path not in pointers)
        return doomed
