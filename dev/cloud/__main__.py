"""The command behind `dev/cloud_check`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cloud import target
from cloud.findings import Check, Finding, Verdict, read_recorded, record

DESCRIPTION = """\
Does Modal's cloud behave as the provider, and the local Modal server, assume? For each assumption: the
verdict, what is assumed, what was seen, what the local Modal server does (as it was recorded), and where
Modal is different what that means and which module cares.

It talks to the server that the environment points to: Modal with the token of `modal token new`, or any
other with MODAL_SERVER_URL. It deploys apps of its own with small containers, makes a Dict, a Queue and a
Volume, and removes all of it at the end, after Ctrl-C too. It takes less than five minutes.
"""
EPILOG = """\
exit codes: 0 all as assumed, as far as it could be checked; 1 something is different; 2 wrong usage, or not
confirmed; 4 Modal can't be reached, or there is no token.
"""
COSTS = (
    "This starts about 40 small containers on Modal for less than five minutes and builds two images (one "
    "of them from "
    "apache/airflow, some GB). At Modal's list prices that is a few US cents, well within the monthly "
    "free credits."
)
SECONDS = 240.0
"""For all checks together; making and removing the apps comes on top."""
OK, DIFFERENT, USAGE, UNREACHABLE = 0, 1, 2, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    if options.only and not _chosen(options.only):
        from cloud.checks import ALL

        names = "; ".join(check.name for check in ALL)
        _say(f"--only {' '.join(options.only)}: no such check. There are: {names}")
        return USAGE
    try:
        if options.local:
            with _local_server():
                return _check(options, cloud=False)
        problem = target.problem()
        if problem:
            _say(problem)
            return UNREACHABLE
        cloud = target.is_cloud()
        if cloud and options.record:
            _say("--record keeps what the local Modal server does; this is Modal. Use it with --local.")
            return USAGE
        if cloud and not options.yes and not _confirmed():
            return USAGE
        return _check(options, cloud=cloud)
    except KeyboardInterrupt:
        _say("stopped; what was made is removed")
        return 130


def _check(options: argparse.Namespace, *, cloud: bool) -> int:
    from cloud.checks import ALL
    from cloud.runner import run
    from cloud.session import Session

    chosen = _chosen(options.only or [""])
    began = time.monotonic()
    recorded = read_recorded() if cloud else {}
    findings: list[Finding] = []
    with Session(cloud=cloud, say=_say) as session:
        _say(f"{session.name} is deployed ({time.monotonic() - began:.0f} s); {len(chosen)} checks follow.")
        for finding in run(session, chosen, recorded, seconds=SECONDS, at_once=12 if cloud else 4):
            findings.append(finding)
            _say(f"  {len(findings)}/{len(chosen)} {finding.check.name}: {finding.seen.verdict.value}")
    order = {check.name: number for number, check in enumerate(ALL)}
    findings.sort(key=lambda finding: order[finding.check.name])
    counts = {verdict: sum(each.seen.verdict is verdict for each in findings) for verdict in Verdict}
    seconds = time.monotonic() - began
    if options.json:
        print(
            json.dumps(
                {
                    "server": target.server_url(),
                    "cloud": cloud,
                    "seconds": round(seconds, 1),
                    "findings": [finding.as_json() for finding in findings],
                }
            )
        )
    else:
        print("\n\n".join(finding.as_text() for finding in findings))
        told = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items())
        print(f"\n{target.server_url()}: {told}; {seconds:.0f} s.")
    if options.record:
        record(findings)
    return DIFFERENT if counts[Verdict.DIFFERENT] else OK


def _chosen(words: Sequence[str]) -> list[Check]:
    from cloud.checks import ALL

    return [check for check in ALL if any(word in check.name for word in words)]


def _confirmed() -> bool:
    _say(COSTS)
    if not sys.stdin.isatty():
        _say("Say --yes to start.")
        return False
    return input("Start? [y/N] ").strip().lower() in ("y", "yes")


@contextmanager
def _local_server() -> Iterator[None]:
    from local_modal.testing import LocalModal

    with LocalModal(arguments=["--max-containers", "24"]) as server:
        os.environ.update(server.env)
        _say(f"a local Modal server runs at {server.server_url}; its containers are {server.mode}")
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dev/cloud_check",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--yes", action="store_true", help="don't ask whether it may cost a few cents")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    parser.add_argument(
        "--local", action="store_true", help="start a local Modal server and check that, without an account"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"keep the outcome as what the local Modal server does ({Path('dev/cloud/local_modal.json')})",
    )
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only checks with TEXT in their name; can be repeated"
    )
    return parser


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    # Not sys.exit(): a call that never came back would be waited for.
    os._exit(code)
