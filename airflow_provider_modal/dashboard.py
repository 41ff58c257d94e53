"""Where does Modal's dashboard show what this package made?"""

from __future__ import annotations


def call_url(call_id: str) -> str:
    """Return where Modal's dashboard shows a function call.

    The address is that of the SDK's ``Object.get_dashboard_url``: it leads to the object's own page, whatever
    the workspace.
    """
    return f"https://modal.com/id/{call_id}"
