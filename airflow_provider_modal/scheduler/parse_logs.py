"""Where does what DAG files print while they are parsed go, and their DAGs' callbacks?

Airflow's DAG processor writes one local file per DAG file. After each parse phase these become segments on
the Volume, below ``logs/dag_processor``, in the background: nothing is scheduled later because of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from airflow_provider_modal.log import segments
from airflow_provider_modal.log.shipper import LogShipper, Writer

log = logging.getLogger(__name__)

UPLOAD_BYTES = 8 * 1024 * 1024
END_SECONDS = 5.0
"""How long the end of a run waits for them."""


class ParseLogs:
    """Ships what one parse phase left, from a thread that is waited for at the end of a ``with`` block.

    :param files: the Volume.
    :param folder: Airflow's ``dag_processor_child_process_log_directory``.
    :param started_at: when the phase began, in seconds since the epoch.
    """

    def __init__(self, files: Writer, folder: Path, started_at: float) -> None:
        self._files = files
        self._folder = folder
        self._started_at = started_at
        self._thread = threading.Thread(target=self._run, name="parse-logs", daemon=True)

    def __enter__(self) -> ParseLogs:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment for the end, unless something more urgent has happened."""
        if kind is None:
            self._thread.join(END_SECONDS)

    def _run(self) -> None:
        try:
            for batch in self._batches():
                self._upload(batch)
        except Exception as error:
            # They stay on local disk, for the next run in this container.
            log.warning("the logs of DAG files are not on the Volume: %s: %s", type(error).__name__, error)

    def _batches(self) -> Iterator[dict[Path, LogShipper]]:
        """Yield the files by what goes into one upload."""
        batch: dict[Path, LogShipper] = {}
        size = 0
        # "latest" is a link to one of the folders, which is not followed.
        for path in sorted(self._folder.rglob("*.log")):
            if not path.is_file():
                continue
            if size >= UPLOAD_BYTES:
                yield batch
                batch, size = {}, 0
            name = f"{segments.PARSING}/{path.relative_to(self._folder).as_posix()}"
            prefix = segments.segment_prefix(segments.other_log(name), self._started_at, "parse")
            batch[path] = LogShipper(self._files, path, prefix)
            size += path.stat().st_size
        if batch:
            yield batch

    def _upload(self, batch: dict[Path, LogShipper]) -> None:
        while pieces := {
            name: content for shipper in batch.values() for name, content in shipper.take(True).items()
        }:
            self._files.write_many(pieces)
            for shipper in batch.values():
                shipper.taken()
        for path in batch:
            path.unlink(missing_ok=True)
