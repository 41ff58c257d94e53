"""What a Volume (version 2) shows to whom, and when."""

from __future__ import annotations

import statistics
import time

from cloud import ground
from cloud.findings import Check, Seen, assumption, judge
from cloud.session import Session

BACKGROUND_SECONDS = 30.0
SMALL_FILE_SECONDS = 2.0
OPEN_FILES = "there are open files"


CHECKS: list[Check] = []


@assumption(
    CHECKS,
    "small file",
    f"A small file is written, and read, through the SDK within {SMALL_FILE_SECONDS:.0f} s.",
    cares="airflow_provider_modal.volume.files",
    quiet=True,
)
def _small_files(session: Session) -> Seen:
    session.function("first").remote("on_mount", "anything")
    found = session.function("first").remote("small_files", session.unique("small"), 8)
    writes, reads = statistics.median(found["writes"]), statistics.median(found["reads"])
    return judge(
        max(writes, reads) < SMALL_FILE_SECONDS,
        f"From a container, by SDK, medians: write {writes:.3f} s, read {reads:.3f} s.",
        "An XCom above the threshold costs that much; raise the threshold.",
        **found,
    )


@assumption(
    CHECKS,
    "SDK writes",
    "What a container uploads through the SDK is visible to all on return, without a commit; on mounts "
    "after a "
    "reload.",
    cares="airflow_provider_modal.volume.files, log",
    seconds=90,
)
def _sdk_writes(session: Session) -> Seen:
    name = session.unique("sdk")
    first, second = session.function("first"), session.function("second")
    second.remote("on_mount", "anything")  # has mounted before the file is there
    first.remote("upload", name, "new")
    elsewhere = second.remote("download", name)
    here = ground.download(session.volume, name)
    on_mount = second.remote("on_mount", name)
    second.remote("reload")
    reloaded = second.remote("on_mount", name)
    return judge(
        elsewhere == here == reloaded == "new",
        f"After batch_upload in a container: by SDK elsewhere {elsewhere!r}, here {here!r}; on a mount of "
        "before "
        f"{on_mount!r}, after its reload {reloaded!r}.",
        "Logs, XComs and DAG versions need a commit, or v2's sync, before anybody may rely on them.",
    )


@assumption(
    CHECKS,
    "file replaced",
    "A file that is replaced through the SDK is read whole and new at once.",
    cares="airflow_provider_modal.volume.dag_versions",
    seconds=90,
)
def _replaced_whole(session: Session) -> Seen:
    name = session.unique("pointer")
    first = session.function("first")
    read = []
    for number in range(5):
        first.remote("upload", name, f"version {number}")
        read.append(ground.download(session.volume, name))
    right = sum(text == f"version {number}" for number, text in enumerate(read))
    return judge(
        right == 5,
        f"{right} of 5 reads right after a replacement had the new content.",
        "A small pointer file can be stale: readers must compare or wait.",
    )


@assumption(
    CHECKS,
    "commit, open file",
    "commit() publishes files that others have half written.",
    cares="airflow_provider_modal.volume",
    seconds=90,
)
def _commit_open(session: Session) -> Seen:
    found = session.function("first").remote("commit_with_an_open_file", session.unique("half"))
    return judge(
        found["read_back"] == "half",
        f"commit() with a file open for writing {found['commit'][:120]}; others then read "
        f"{found['read_back']!r}.",
        "Harmless: nothing of ours is written where the volume is mounted.",
        **found,
    )


@assumption(
    CHECKS,
    "reload, open file",
    f"reload() fails with an open file ('{OPEN_FILES}...').",
    cares="airflow_provider_modal.bundles",
    seconds=90,
)
def _reload_open(session: Session) -> Seen:
    found = session.function("first").remote("reload_with_an_open_file", session.unique("open"))
    return judge(
        OPEN_FILES in found["open"] and found["closed"] == "returned",
        f"reload() with an open file: {found['open'][:120]}; once it is closed: {found['closed'][:80]}.",
        "A reload may change files under a running task.",
        **found,
    )


@assumption(
    CHECKS,
    "background commit",
    f"A running container's changes are committed within {BACKGROUND_SECONDS:.0f} s.",
    cares="dev/local_modal (volumes)",
    seconds=120,
)
def _background(session: Session) -> Seen:
    name = session.unique("background")
    call = session.function("leaver").spawn(name, "return", BACKGROUND_SECONDS + 20)
    began = time.monotonic()
    session.wait_for(lambda: ground.download(session.volume, name) is not None, BACKGROUND_SECONDS + 15, 0.5)
    seconds = time.monotonic() - began
    seen = ground.download(session.volume, name) is not None
    call.cancel(terminate_containers=True)
    return judge(
        seen and seconds < BACKGROUND_SECONDS,
        f"A file that nobody committed was {'' if seen else 'not '}visible after {seconds:.0f} s (start "
        "included).",
        "What users write to the mount is visible at the container's end only.",
        seconds=seconds,
    )


@assumption(
    CHECKS,
    "commit at the end",
    "A container that ends cleanly commits what it wrote.",
    cares="dev/local_modal (volumes)",
    seconds=90,
)
def _at_exit(session: Session) -> Seen:
    name = session.unique("left")
    session.function("leaver").remote(name, "return")
    began = time.monotonic()
    seen = session.wait_for(lambda: ground.download(session.volume, name), 30, 0.2) is not None
    return judge(
        seen,
        f"A file that nobody committed was {'' if seen else 'not '}there {time.monotonic() - began:.1f} s "
        "after the "
        "call's end.",
        "What users write to the mount is lost without a commit.",
    )
