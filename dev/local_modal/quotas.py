"""How much Modal accepts and keeps: the figures of its documentation, in one place where tests can lower
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

DAY = 86_400.0


@dataclass
class Quotas:
    """May be changed while the server runs; takes effect with the next request.

    The limits on inputs are per function (here: per variant of it) and documented at
    https://modal.com/docs/guide/scale; what exceeds them is answered with RESOURCE_EXHAUSTED.
    """

    pending_inputs: int = 2_000
    """Inputs that wait for a container, when one more arrives by `remote` or `map`. Spawned ones count too,
    which is an assumption (the worse case).
    """
    total_inputs: int = 25_000
    """Waiting and running inputs together, when one more arrives by `remote` or `map`."""
    pending_spawned: int = 1_000_000
    """Inputs that wait, when one more is spawned."""
    map_outstanding: int = 1_000
    """How far a `map` may run ahead of its outputs; the SDK keeps to it."""
    spawned_result_seconds: float = 7 * DAY
    """How long the result of a spawned call can be asked for; then it is `OutputExpiredError`
    (https://modal.com/docs/guide/job-queue).
    """
    awaited_result_seconds: float = 3_600.0
    """The same for `remote` and `map`, whose caller waits for it. Assumption: Modal names no figure."""
    finished_calls: int = 20_000
    """Finished calls that this server keeps at most, whatever their age. Modal has no such limit."""
    finished_bytes: int = 128 * 2**20
    """Bytes of memory that finished calls take at most: their results, streams and records. The one that
    ended last stays in any case. Modal has no such limit.
    """

    @classmethod
    def parse(cls, assignments: Iterable[str]) -> Quotas:
        """Quotas from texts such as "pending_inputs=5".

        Raises:
            ValueError: with the text and what is wrong with it.
        """
        quotas = cls()
        for text in assignments:
            name, _, value = text.partition("=")
            if name not in {each.name for each in fields(cls)}:
                raise ValueError(f"{text}: there is no quota {name!r}")
            quotas.change(name, value)
        return quotas

    def change(self, name: str, value: str) -> None:
        """Set the quota `name`.

        Raises:
            ValueError: not a number, or less than 0.
        """
        kind = type(getattr(self, name))
        try:
            number = kind(value)
        except ValueError:
            raise ValueError(f"{name}={value}: {value!r} is not a number") from None
        if not number >= 0:
            raise ValueError(f"{name}={value}: must not be negative")
        setattr(self, name, number)
