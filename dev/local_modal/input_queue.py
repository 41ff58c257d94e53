"""In which order do the inputs of a function start? Those that had a turn already before new ones, each kind
in the order of its arrival; some not before a moment.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from typing import NamedTuple


class _Delayed(NamedTuple):
    not_before: float
    number: int
    """In the order of arrival, for those that come at the same moment."""
    since: float
    input_id: str


class InputQueue:
    """Input ids with the time since when they wait. Every operation takes constant (with a delay,
    logarithmic) time, however many wait.
    """

    def __init__(self) -> None:
        self._again: OrderedDict[str, float] = OrderedDict()
        """Those that had a turn and may start now, which is before the new ones."""
        self._new: OrderedDict[str, float] = OrderedDict()
        self._numbers = itertools.count()
        self._delayed: list[_Delayed] = []
        """A heap; may have entries of inputs that have been removed."""
        self._waiting_for_time: dict[str, _Delayed] = {}

    def __len__(self) -> int:
        return len(self._again) + len(self._new) + len(self._waiting_for_time)

    def __contains__(self, input_id: str) -> bool:
        return any(input_id in part for part in (self._again, self._new, self._waiting_for_time))

    def add(self, input_id: str, now: float) -> None:
        """A new input, behind all others."""
        self._new[input_id] = now

    def add_again(self, input_id: str, now: float, delay: float) -> None:
        """An input that had its turn: before the new ones, once `delay` seconds have passed."""
        entry = _Delayed(now + delay, next(self._numbers), now, input_id)
        self._waiting_for_time[input_id] = entry
        heapq.heappush(self._delayed, entry)

    def remove(self, input_id: str) -> bool:
        """Take an input out; False if it isn't here."""
        if self._waiting_for_time.pop(input_id, None) is not None:
            self._skip_removed()
            return True
        return any(part.pop(input_id, None) is not None for part in (self._again, self._new))

    def due(self, now: float) -> int:
        """How many may start now."""
        while self._delayed and self._delayed[0].not_before <= now:
            entry = heapq.heappop(self._delayed)
            del self._waiting_for_time[entry.input_id]
            self._again[entry.input_id] = entry.since
            self._skip_removed()
        return len(self._again) + len(self._new)

    def take(self, count: int) -> list[str]:
        """The first `count` of those that are due, or as many as there are."""
        taken: list[str] = []
        for part in (self._again, self._new):
            while part and len(taken) < count:
                taken.append(part.popitem(last=False)[0])
        return taken

    def next_due(self) -> float:
        """When the next delayed input may start; infinity if there is none."""
        return self._delayed[0].not_before if self._delayed else math.inf

    def oldest(self) -> float:
        """Since when the first of those that are due, of either kind, waits; infinity if none is."""
        return min(next(iter(part.values()), math.inf) for part in (self._again, self._new))

    def clear(self) -> list[str]:
        """Take out all; returns them in the order in which they would have started."""
        found = self.all()
        self._again.clear()
        self._new.clear()
        self._delayed.clear()
        self._waiting_for_time.clear()
        return found

    def all(self) -> list[str]:
        """Everything that waits, in the order in which it will start."""
        delayed = sorted(self._waiting_for_time.values())
        return [*self._again, *self._new, *(entry.input_id for entry in delayed)]

    def _skip_removed(self) -> None:
        while self._delayed and self._waiting_for_time.get(self._delayed[0].input_id) is not self._delayed[0]:
            heapq.heappop(self._delayed)
