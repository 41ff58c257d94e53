"""What only Modal can do: build Airflow's image, and take memory snapshots."""

from __future__ import annotations

from typing import Any

import modal

from cloud.findings import Check, Seen, assumption, judge, unchecked
from cloud.session import Session

NOT_LOCAL = "Not applicable: the local Modal server builds no images."


CHECKS: list[Check] = []


def _inside(session: Session) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        probes = session.image_probes()
        session.deploy(probes.AIRFLOW, probes.airflow_app)
        found: dict[str, Any] = session.function("airflow_inside", probes.AIRFLOW).remote()
        return found

    found: dict[str, Any] = session.once("airflow image", ask)
    return found


@assumption(
    CHECKS,
    "image of Airflow",
    "apache/airflow with 'USER root' runs Python of its tag as root, with airflow on PATH.",
    cares="airflow_provider_modal.image",
    seconds=240,
)
def _airflow_image(session: Session) -> Seen:
    if not session.cloud:
        return unchecked(NOT_LOCAL)
    found = _inside(session)
    return judge(
        found["python"].startswith("3.12") and found["uid"] == 0 and bool(found["airflow_command"]),
        f"Python {found['python']} at {found['executable']}, user {found['user']} (uid {found['uid']}), PATH "
        f"{found['path']}, airflow at {found['airflow_command'] or 'no place on PATH'}.",
        "Containers run another Python or user than the image's tag says; commands may not be found.",
        **found,
    )


@assumption(
    CHECKS,
    "uv_pip_install",
    "uv_pip_install adds to the environment that the image's Airflow is in.",
    cares="airflow_provider_modal.image",
    seconds=240,
)
def _uv_pip_install(session: Session) -> Seen:
    if not session.cloud:
        return unchecked(NOT_LOCAL)
    places = _inside(session)["places"]
    folders = {name: place.partition("/site-packages/")[0] for name, place in places.items()}
    return judge(
        "missing" not in places.values() and len(set(folders.values())) == 1,
        f"Airflow is in {folders['airflow']}, what uv_pip_install added in {folders['cowsay']}.",
        "Packages are installed where the image's Airflow doesn't see them, or beside a second Airflow.",
        **places,
    )


@assumption(
    CHECKS,
    "zygote in a snapshot",
    "A process that was started before a memory snapshot forks after the restore.",
    cares="airflow_provider_modal.container.zygote",
    seconds=200,
)
def _snapshot(session: Session) -> Seen:
    if not session.cloud:
        return unchecked("Not applicable: the local Modal server takes no memory snapshots.")
    probes = session.image_probes()
    session.deploy(probes.SNAPSHOT, probes.snapshot_app)
    # Modal takes the snapshot at one of the first starts.
    for _ in range(5):
        found = modal.Cls.from_name(probes.SNAPSHOT, "Snapshotted")().ask.remote()
        if found["restored"]:
            break
    else:
        return unchecked("None of 5 containers was restored from a snapshot.")
    return judge(
        found["answered"],
        f"A zygote of before the snapshot {'answers' if found['answered'] else 'does not answer'} after "
        "the restore.",
        "Memory snapshots can't be used for worker containers.",
        **found,
    )
