"""What may go, and who decides: the words that all kinds of retention share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

JUDGED_TOGETHER = 500
"""How many things the database is asked about at a time."""


@dataclass(frozen=True)
class Policy:
    """What a person wants to keep.

    :param older_than: seconds since the last use, or since the end of a run.
    :param keep_versions: how many of the latest DAG versions stay, however old they are.
    :param now: seconds since the epoch.
    """

    older_than: float
    keep_versions: int
    now: float


@dataclass(frozen=True)
class Found:
    """Something on the Volume that may go.

    :param path: of a file, or of a folder with all that is in it.
    :param size: bytes.
    :param because: why nobody needs it.
    """

    path: str
    size: int
    because: str
    folder: bool = False


class Ask(Protocol):
    """Asks the environment's database what it still refers to (see ``control.retention``)."""

    def __call__(self, **arguments: Any) -> Any:
        """Return the answer of the operation ``clean.judge``."""


class Kind(Protocol):
    """One kind of data.

    :ivar name: as a person names it.
    """

    name: str

    def find(self) -> Iterator[Found]:
        """Yield what may go.

        :raises ModalflowError: it can't be listed, or the database can't be asked.
        """

    def remove(self, found: Sequence[Found]) -> list[Found]:
        """Remove what was found, except what is needed by now; return what was removed."""


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of at most ``JUDGED_TOGETHER``."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == JUDGED_TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch
