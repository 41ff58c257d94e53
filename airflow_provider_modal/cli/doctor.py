"""``modalflow doctor``: what is wrong with an environment, and what is to be done?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_modal.cli import checks, modal_access
from airflow_provider_modal.cli.checks import Finding
from airflow_provider_modal.cli.options import env_flag, environment_command, json_option
from airflow_provider_modal.cli.output import note, print_json, print_text, waiting
from airflow_provider_modal.cli.status import scheduler_state
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.names import ResourceNames

if TYPE_CHECKING:
    from airflow_provider_modal.deployment import Manifest

_DEPLOYED = ("release", "gpus", "plan")
_INSIDE = ("clock", "volume", "database", *checks.DATABASE_CHECKS)
_TOKEN = "modal token new, or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET; is Modal up: https://status.modal.com"
_MARKS = {
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
    "unknown": ("?", "bright_black"),
}


@click.command()
@json_option
@environment_command
def doctor(resources: ResourceNames, as_json: bool) -> None:
    """Look for what is wrong with an environment; each finding comes with its remedy.

    Looks at the Modal token, the deployed App and its release, the Volume, the database (reachable, version,
    TLS, pooler, connections, owner, schema), clocks, Modal's plan, names of GPUs, and the scheduler. All of
    it, whatever is found first; nothing is changed.

    \b
    Examples:
      modalflow doctor --env dev
      modalflow doctor --env dev --json | jq -r '.[] | select(.status != "ok") | .remedy'

    The exit code is 1 if a check fails. Warnings, of what works but not well or not for long, and what can't
    be known leave it at 0.
    """
    findings = []
    for finding in examine(resources):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if not as_json:
        note(f"{failed} failed, {warned} warnings, of {len(findings)} checks")
    if failed:
        raise click.exceptions.Exit(1)


def examine(resources: ResourceNames) -> Iterator[Finding]:
    """Check an environment, as far as it can be reached, and give each finding as soon as it is there."""
    access = modal_access.Access(resources)
    reached = _look("modal", modal_access.probe, lambda: f"{_server()} accepts the token", _TOKEN)
    yield reached
    if reached.status == "fail":
        rest = ["manifest", *_DEPLOYED, "app", *_INSIDE, "scheduler"]
        yield from _unknown("Modal does not answer", rest)
        return
    manifest: list[Manifest] = []
    yield _look(
        "manifest",
        lambda: manifest.append(access.manifest),
        lambda: f"deployed at {manifest[0].deployed_at}",
        f"modalflow create{env_flag(resources)} --config config.yaml",
    )
    settings = manifest[0].settings if manifest else None
    if manifest:
        yield checks.release(manifest[0])
        yield checks.gpus(manifest[0].settings)
        yield checks.plan(manifest[0].settings)
    else:
        yield from _unknown("there is no manifest", _DEPLOYED)
    yield from _inside(access, settings)
    if manifest:
        yield _scheduler(access)
    else:
        yield from _unknown("there is no manifest", ["scheduler"])


def _inside(access: modal_access.Access, settings: Any) -> Iterator[Finding]:
    """Ask a container of the environment."""
    facts: dict[str, Any] = {}
    before = time.time()

    def ask() -> None:
        with waiting("asking a container of the environment, which may have to start"):
            facts.update(access.control.call("examine"))

    app = access.resources.app
    yield _look(
        "app",
        ask,
        lambda: f"{app} is deployed and answers",
        f"see modal app logs {app}, or deploy again: modalflow create",
    )
    after = time.time()
    if not facts:
        yield from _unknown("no container answers", _INSIDE)
        return
    yield checks.local_clock(before, facts["at"], after)
    yield from checks.environment_inside(facts, settings)


def _scheduler(access: modal_access.Access) -> Finding:
    told: dict[str, Any] = {}
    found = _look("scheduler", lambda: told.update(scheduler_state(access)), lambda: "", "try again")
    return checks.scheduler(told) if told else found


def _look(check: str, look: Callable[[], object], fine: Callable[[], str], remedy: str) -> Finding:
    """Return that all is well, or the error that ``look`` raises."""
    try:
        look()
    except Exception as error:
        known = error if isinstance(error, ModalflowError) else modal_access.explained(error)
        told = str(known) if known else f"unexpected {type(error).__name__}: {error}"
        return Finding(check, "fail", told, remedy)
    return Finding(check, "ok", fine())


def _unknown(why: str, names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        yield Finding(name, "unknown", why)


def _server() -> str:
    from modal.config import config

    return str(config["server_url"])


def _show(finding: Finding) -> None:
    mark, colour = _MARKS[finding.status]
    lines = finding.found.strip().splitlines() or [""]
    print_text(f"{click.style(mark, fg=colour)} {finding.check}: {lines[0]}")
    for line in lines[1:]:
        print_text(f"    {line}")
    if finding.remedy:
        print_text(f"    → {finding.remedy}")
