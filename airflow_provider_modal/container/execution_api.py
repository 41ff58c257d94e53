"""Airflow's execution API inside a container: how is it asked, and what of it need not be built?

Airflow's execution API speaks every version since 3.0; building the routes and models of all of them takes
most of a worker's start. In a container the only client is the task SDK installed beside it, which speaks the
newest. So the older versions are left out before the app is built, as far as they can be: a route that was
replaced must have a version in which it still exists.

Rests on names of cadwyn (``VersionBundle``, ``Version``, ``_bound_version_bundle``) and of Airflow
(``execution_api.versions.bundle``); where one of them is different, all versions are built as always.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

IN_PROCESS_URL = "http://in-process.invalid./"
"""Any URL: the transport ignores the host. RFC 6761 keeps ``invalid`` from ever resolving."""


def in_process_client(transport: Any) -> Any:
    """Return the task SDK's client over a transport of ``InProcessExecutionAPI``."""
    from airflow.sdk.api.client import Client

    # "dry run" is how Airflow spells a client without server; the given transport replaces its dummy.
    client = Client(base_url=None, token="", dry_run=True, transport=transport)
    client.base_url = IN_PROCESS_URL
    return client


def leave_out_old_versions() -> None:
    """Reduce the versions of Airflow's execution API in this process; to be called before it is built."""
    try:
        _reduce()
    except Exception as error:
        log.warning(
            "the execution API is built in all versions, which takes longer: %s: %s",
            type(error).__name__,
            error,
        )


def _reduce() -> None:
    from airflow.api_fastapi.execution_api import versions
    from airflow.sdk.api.client import API_VERSION
    from cadwyn import HeadVersion, Version, VersionBundle

    stock = versions.bundle
    kept = stock.versions[: _needed(stock)]
    if len(kept) == len(stock.versions) or API_VERSION not in [version.value for version in kept]:
        return
    for version in stock:
        for change in version.changes:
            # A change belongs to one bundle; the stock one is given up.
            change._bound_version_bundle = None
    versions.bundle = VersionBundle(
        HeadVersion(*stock.head_version.changes),
        *kept[:-1],
        Version(kept[-1].value),
        api_version_var=stock.api_version_var,
    )


def _needed(bundle: Any) -> int:
    """Return how many versions, from the newest, have every route of the router exist in one of them."""
    from cadwyn.structure.endpoints import EndpointExistedInstruction

    needed = 1
    for number, version in enumerate(bundle.versions, start=1):
        for change in version.changes:
            if any(isinstance(i, EndpointExistedInstruction) for i in change.alter_endpoint_instructions):
                needed = number + 1
    return needed
