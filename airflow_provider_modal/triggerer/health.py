"""What became of the last triggerers? Kept in the state Dict, for ``modalflow status`` and who starts one.

Only the holder of the triggerer's lock writes it: it opens the record when it begins and closes it when it
ends, so one that a successor of the same deployment finds open was killed. A successor of a later deployment
has ended it itself.

All of this is a hint: where it is missing or of another release, nothing is known of failures.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from airflow_provider_modal import names
from airflow_provider_modal.scheduler import history

if TYPE_CHECKING:
    import modal

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
"""What is doubled when triggerers fail again and again."""
KILLED = "it was killed, or ran out of memory"


@dataclass(frozen=True)
class Health:
    """What is known of the triggerers of an environment.

    :param failures: how many in a row have failed.
    :param at: when the last one failed, in seconds since the epoch.
    :param message: why it failed.
    :param at_work: who is at work (``need.holder_name``); None if nobody is, as far as is known.
    """

    failures: int = 0
    at: float = 0.0
    message: str | None = None
    at_work: str | None = None

    @property
    def held_until(self) -> float | None:
        """When the next one is started, in seconds since the epoch; None if at once."""
        delay = history.delay(self.failures, INTERVAL_SECONDS)
        return None if delay is None else self.at + delay


def read(state: modal.Dict) -> Health:
    """Return what is known.

    :raises modal.exception.Error: Modal does not answer, or the environment is not deployed.
    """
    stored = state.get(names.TRIGGERER_KEY)
    try:
        return Health(**stored) if stored else Health()
    except TypeError as error:
        log.warning("what is known of former triggerers is of another release: %s", error)
        return Health()


class Journal:
    """What a triggerer notes about itself; nothing that goes wrong here keeps it from its work.

    :param state: the environment's state Dict.
    :param holder: the name of its lock's connection.
    """

    def __init__(self, state: modal.Dict, holder: str) -> None:
        self._state = state
        self._holder = holder

    def begin(self) -> None:
        """Note that it is at work; it has the lock."""
        self._note(None, at_work=self._holder)

    def end(self, error: str | None) -> None:
        """Note how it ended; it has the lock, or knows that it failed.

        :param error: why it failed; None if it did what there was to do.
        """
        self._note(error, at_work=None)

    def _note(self, error: str | None, *, at_work: str | None) -> None:
        try:
            before = read(self._state)
            if at_work is not None and before.at_work == at_work:
                error = KILLED
            if error is not None:
                now = Health(before.failures + 1, time.time(), error, at_work)
            elif at_work is not None:
                now = Health(before.failures, before.at, before.message, at_work)
            else:
                now = Health()
            self._state.put(names.TRIGGERER_KEY, asdict(now))
        except Exception as failure:
            log.warning("this triggerer is not on record: %s: %s", type(failure).__name__, failure)
