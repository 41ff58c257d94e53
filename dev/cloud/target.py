"""Which Modal does the environment point to, and can it be asked?

As a script it tells what `dev/test --cloud` lacks: exit code 0 nothing, 2 a setting, 4 Modal's answer.
"""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlsplit

DATABASE_URL = "MODALFLOW_TEST_DATABASE_URL"
CONNECT_SECONDS = 10.0
OK, MISSING, UNREACHABLE = 0, 2, 4


def server_url() -> str:
    """The server that the SDK will use; the first, if there are more to fall back on."""
    from modal.config import config

    return str(config["server_url"]).partition(",")[0]


def is_cloud() -> bool:
    """Whether that is Modal itself, where things cost money, and not a server on this machine."""
    url = urlsplit(server_url())
    return url.scheme != "unix" and not (
        url.hostname == "localhost" or (url.hostname or "").startswith("127.")
    )


def problem() -> str:
    """Why Modal can't be asked, and what to do; empty if it can.

    The SDK itself would try for a minute to connect.
    """
    from modal.config import config

    if not (config["token_id"] and config["token_secret"]):
        return (
            "No Modal token: run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET. Without an "
            "account: dev/cloud_check --local."
        )
    url = urlsplit(server_url())
    if url.scheme == "unix":
        return ""
    address = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return f"{server_url()} can't be reached: {error}"
    import modal

    try:
        modal.Client.from_env().hello()
    except modal.exception.Error as error:
        return f"{server_url()} refuses: {error}"
    return ""


def missing_database() -> str:
    """Why the acceptance suite has no database, and what to do; empty if it has one."""
    if not is_cloud() or os.environ.get(DATABASE_URL):
        return ""  # containers of a local server reach the suite's own
    return (
        f"No database: set {DATABASE_URL} to a PostgreSQL 13 or later that Modal can reach, "
        "postgresql://user:password@host:5432/postgres, with a user that may create databases."
    )


def main() -> int:
    """Tell what is missing for `dev/test --cloud`."""
    unreachable, database = problem(), missing_database()
    for text in filter(None, (unreachable, database)):
        print(text, file=sys.stderr)
    if "No Modal token" in unreachable or database:
        return MISSING
    return UNREACHABLE if unreachable else OK


if __name__ == "__main__":
    sys.exit(main())
