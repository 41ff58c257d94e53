"""Airflow's own triggerer, which runs while there are triggers and costs nothing while there are none.

``need`` asks the database whether one is needed and lives; ``keeper`` starts one while the scheduler works;
``slices`` is what runs then, in Modal's entry process; ``af3`` is the child of the zygote that holds
Airflow's classes, ``waker`` its way to wake the scheduler, ``logs`` the way of the triggers' logs to the
Volume; ``code`` tells where triggers of the user's own come from.
"""

from __future__ import annotations

SLICE_SECONDS = 23.5 * 3600.0
"""After this long a triggerer hands over to the next one, which begins all triggers again. What a trigger has
in memory (how long it has slept, where a stream is) is lost with it, so it happens as seldom as Modal's limit
of 24 hours for a call allows."""
MARGIN_SECONDS = 1800
"""What is left of those 24 hours for a container's start and the triggerer's end."""
