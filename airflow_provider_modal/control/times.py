"""How do times travel to the command line?"""

from __future__ import annotations

from datetime import datetime, timezone


def iso(time: datetime | None) -> str | None:
    """Return a time as ISO 8601 text in UTC."""
    return None if time is None else time.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def parsed(text: str) -> datetime:
    """Return the time that ISO 8601 text means; UTC if it has no zone.

    :raises ValueError: it is no such text.
    """
    # Python 3.10 does not read "Z".
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
