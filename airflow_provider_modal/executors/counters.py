"""What does the executor count, beyond the ends of workloads? For metrics and ``debug_dump``.

Counts since the executor was made; used on the scheduler's thread only.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, TypeAlias

Name = Literal[
    "late_events",
    "repeated_events",
    "foreign_events",
    "malformed_events",
    "silent_looks",
    "silent_checks",
    "failed_starts",
    "dispatched_again",
    "moved_on",
]
"""``late_events``: ends of a dispatch that another one of the same try has replaced. ``repeated_events``:
ends of a dispatch whose end was known. ``foreign_events``: ends of a dispatch that was never on its way here.
``malformed_events``: what was in the event Queue and is no completion. All four are dropped.

``silent_looks``: statements that looked for signs of life in the database. ``silent_checks``: dispatches that
Modal was asked about because nothing was heard of them. ``failed_starts``: dispatches taken back from Modal
because their containers end while they start. ``dispatched_again``: dispatches that nobody runs, handed back
to the scheduler within the same try. ``moved_on``: dispatches cancelled because Airflow no longer waits for
them: cleared, marked or deleted before a container took them, or while it hangs."""

Counters: TypeAlias = Counter[Name]
