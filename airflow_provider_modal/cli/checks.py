"""What do the facts that ``modalflow doctor`` gathered mean, and what is to be done?

Pure functions from facts to findings; who asks for the facts is ``cli.doctor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_modal import __version__, names, prices
from airflow_provider_modal.config import ExecutorConfig
from airflow_provider_modal.version_compat import airflow_version
from airflow_provider_modal.wire import WIRE_VERSION

if TYPE_CHECKING:
    from airflow_provider_modal.deployment import Manifest

Status = Literal["ok", "warn", "fail", "unknown"]

KEPT_FREE = 10
"""Connections of the database that scheduler, control and administrators need beside the tasks."""
STARTER_CONTAINERS = 100
STARTER_GPUS = 10
"""What Modal's smallest plan allows at a time (https://modal.com/pricing)."""
_OTHER_CONTAINERS = 4
"""Scheduler, its tick, triggerer, control."""
LASTING_FAILURES = 3
SKEW_WARNS = 5.0
SKEW_FAILS = 60.0
"""Seconds between two clocks. Airflow compares times of containers with the database's: heartbeats within
minutes, and its own tokens within seconds."""
_DIRECT = "set database.connection_string to the server itself, or to session mode, then modalflow create"
_REACHABLE = (
    "let it run and accept Modal's connections, or correct database.connection_string: modalflow create"
)
_OWN = "give each environment a database of its own: another connection_string, then modalflow create"
_LOOPBACK = ("localhost", "127.", "[::1]", "::1", "/")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    :param remedy: what to do; None where there is nothing to do.
    """

    check: str
    status: Status
    found: str
    remedy: str | None = None


def scheduler(state: Mapping[str, Any]) -> Finding:
    """Judge what ``status.scheduler_state`` tells.

    A few failed runs may have been waiting for ``create`` to migrate, or met a database that was away.
    """
    told = f"{state['state']}: {state['detail']}"
    if state["state"] not in ("stopped", "failing"):
        return Finding("scheduler", "ok", told)
    failures = max(state["failures_in_a_row"], state["triggerer"]["failures_in_a_row"])
    lasting = state["state"] == "stopped" or failures >= LASTING_FAILURES
    return Finding("scheduler", "fail" if lasting else "warn", told, "modalflow status shows its last runs")


DATABASE_CHECKS = ("tls", "pooler", "connections", "owner", "schema", "clock of the database")
"""What can't be known without the database."""


def enough_connections(parallelism: int, limit: int) -> bool:
    """Whether a database carries so many tasks at a time, each of which holds a connection."""
    return parallelism + KEPT_FREE <= limit


def connections_remedy(limit: int) -> str:
    """Return what to do where it does not."""
    return f"Lower parallelism to {max(limit - KEPT_FREE, 1)}, or raise max_connections"


def release(manifest: Manifest) -> Finding:
    """Compare what is deployed with what is installed here."""
    deployed = f"airflow-provider-modal {manifest.package}, Airflow {manifest.airflow}"
    redeploy = "deploy what is installed here: modalflow create; or install here what is deployed"
    if manifest.wire != WIRE_VERSION:
        found = f"{deployed} speak format {manifest.wire}, the package here {WIRE_VERSION}"
        return Finding("release", "fail", found, redeploy)
    if (manifest.package, manifest.airflow) != (__version__, airflow_version()):
        found = f"deployed: {deployed}; here: {__version__}, Airflow {airflow_version()}"
        return Finding("release", "warn", found, redeploy)
    return Finding("release", "ok", f"{deployed}, as here")


def gpus(settings: Mapping[str, Any]) -> Finding:
    """Look for GPU names that Modal's list does not have."""
    wanted = {name: str(gpu) for name, profile in _profiles(settings).items() if (gpu := profile.get("gpu"))}
    strange = {name: gpu for name, gpu in wanted.items() if not prices.is_known_gpu(gpu)}
    if not strange:
        told = ", ".join(f"{gpu} ({name})" for name, gpu in wanted.items()) or "no profile has one"
        return Finding("gpus", "ok", told)
    hints = [
        f"workers.{name}.gpu: {' or '.join(similar)}?"
        for name, gpu in strange.items()
        if (similar := prices.similar_gpus(gpu))
    ]
    found = ", ".join(f"{gpu!r} ({name})" for name, gpu in strange.items())
    return Finding(
        "gpus",
        "warn",
        f"not on Modal's list of {prices.AS_OF}: {found}",
        " ".join([*hints, f"Modal's names are at {prices.SOURCE}"]),
    )


def plan(settings: Mapping[str, Any]) -> Finding:
    """Compare the need with what Modal's plans allow; Modal does not say which one an account has."""
    tasks = _parallelism(settings)
    gpu_counts = [
        int(count or 1) * min(profile.get("max_containers") or tasks, tasks)
        for profile in _profiles(settings).values()
        if profile.get("gpu")
        for count in [str(profile["gpu"]).partition(":")[2]]
        if count.isdigit() or not count
    ]
    need = tasks + _OTHER_CONTAINERS
    told = f"up to {need} containers and {max(gpu_counts, default=0)} GPUs of one profile at a time"
    if need <= STARTER_CONTAINERS and max(gpu_counts, default=0) <= STARTER_GPUS:
        return Finding("plan", "ok", f"{told}, which every plan of Modal allows")
    return Finding(
        "plan",
        "unknown",
        f"{told}; Modal's smallest plan allows {STARTER_CONTAINERS} and {STARTER_GPUS}, and Modal does not "
        "say which plan this is",
        "look at https://modal.com/settings; beyond the limit tasks wait in queued. Fewer: "
        "executor.parallelism, workers.*.max_containers",
    )


def environment_inside(facts: Mapping[str, Any], settings: Mapping[str, Any] | None) -> list[Finding]:
    """Judge what the control operation ``examine`` answered.

    :param settings: the deployed configuration; None if it is not known.
    """
    found = [_volume(facts.get("volume"))]
    away = facts.get("unreachable")
    if away:
        unknown = "the database does not answer"
        return [
            *found,
            Finding("database", "fail", str(away), _REACHABLE),
            *(Finding(check, "unknown", unknown) for check in DATABASE_CHECKS),
        ]
    database, wrong = facts["database"], facts["wrong"]
    return [
        *found,
        _server(database),
        _tls(database),
        _wrong("pooler", wrong["pooler"], "none in transaction mode", _DIRECT),
        _connections(database, settings),
        _wrong("owner", wrong["owner"] or wrong["scheduler"], "the database is this environment's own", _OWN),
        _wrong(
            "schema", wrong["schema"], f"revision {database['revision']}, as deployed", "modalflow create"
        ),
        _skew("clock of the database", database["ahead"], "the containers'"),
    ]


def local_clock(before: float, at: float, after: float) -> Finding:
    """Compare this machine's clock with a container's.

    :param at: the container's time while it answered; ``before`` and ``after`` are this machine's around it.
    """
    ahead = min(after - at, 0.0) or max(before - at, 0.0)
    return _skew("clock", ahead, "the containers'")


def _skew(check: str, ahead: float, of: str) -> Finding:
    if abs(ahead) <= SKEW_WARNS:
        return Finding(check, "ok", f"not seen to differ from {of}")
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {of}"
    whose = "the database's host" if "database" in check else "this machine"
    status: Status = "fail" if abs(ahead) > SKEW_FAILS else "warn"
    return Finding(check, status, found, f"let NTP set the clock of {whose}")


def _volume(fault: Any) -> Finding:
    if fault:
        return Finding("volume", "fail", f"a container can't read it: {fault}", "run modalflow create again")
    return Finding("volume", "ok", "read from here and from a container")


def _server(database: Mapping[str, Any]) -> Finding:
    told = f"PostgreSQL {database['server_version']} at {database['host']}"
    if not database["supported"]:
        return Finding("database", "fail", told, "Airflow needs PostgreSQL 13 or later: upgrade it")
    return Finding("database", "ok", told)


def _tls(database: Mapping[str, Any]) -> Finding:
    if database["tls"]:
        return Finding("tls", "ok", str(database["tls"]))
    if str(database["host"]).startswith(_LOOPBACK):
        return Finding("tls", "ok", "not used, and not needed within one machine")
    return Finding(
        "tls",
        "warn",
        "passwords and data cross the network unencrypted",
        "add ?sslmode=require to database.connection_string, if the server has TLS, and run modalflow create",
    )


def _connections(database: Mapping[str, Any], settings: Mapping[str, Any] | None) -> Finding:
    limit = database["max_connections"]
    told = f"{database['connections']} of {limit} in use"
    if settings is None:
        return Finding("connections", "unknown", f"{told}; parallelism is not known")
    parallelism = _parallelism(settings)
    told += f"; executor.parallelism is {parallelism}, and every running task holds one"
    if enough_connections(parallelism, limit):
        return Finding("connections", "ok", told)
    return Finding("connections", "warn", told, connections_remedy(limit))


def _wrong(check: str, fault: Any, fine: str, remedy: str) -> Finding:
    return Finding(check, "fail", str(fault), remedy) if fault else Finding(check, "ok", fine)


def _profiles(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = settings.get("workers") or {names.DEFAULT_PROFILE: {}}
    return found


def _parallelism(settings: Mapping[str, Any]) -> int:
    # Read by name: the environment may be of another release.
    return int((settings.get("executor") or {}).get("parallelism", ExecutorConfig.parallelism))
