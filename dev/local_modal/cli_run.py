"""The command `run`: a server for as long as one command takes."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local_modal.cli_common import Raw, Refused
from local_modal.testing import LocalModal

DESCRIPTION = """\
Start a server on an empty state directory, run a command with the environment that makes `modal` use it, stop
the server. The exit code is the command's. Options of `serve` may stand before the two dashes:

  python -m local_modal run -- modal run app.py
  python -m local_modal run -- pytest tests
  python -m local_modal run --seed 7 --faults plan.yaml -- python my_chaos_test.py
  python -m local_modal run --state-dir kept -- modal deploy app.py
"""


def add_command(commands: Any) -> None:
    """Add `run`."""
    run = commands.add_parser(
        "run",
        help="run one command with a server of its own",
        usage="python -m local_modal run [options of serve] -- COMMAND [ARGUMENT...]",
        description=DESCRIPTION,
        formatter_class=Raw,
    )
    # argparse would take options of the command for its own: `split` has kept them apart.
    run.set_defaults(command=_run)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What `run` is given: (what argparse reads, options of serve, the command).

    Raises:
        Refused: there is no command.
    """
    if list(arguments[:1]) != ["run"] or {"-h", "--help"} & set(_before_dashes(arguments)):
        return list(arguments), [], []
    options = _before_dashes(arguments)[1:]
    command = list(arguments[len(options) + 2 :])
    if not command:
        raise Refused("run: which command? Such as: python -m local_modal run -- modal run app.py")
    return ["run"], list(options), command


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: list(arguments).index("--")] if "--" in arguments else arguments


def _run(arguments: argparse.Namespace) -> int:
    options, state_dir = _own_state_dir(arguments.serve_options)
    directory = state_dir or Path(tempfile.mkdtemp(prefix="local-modal-"))
    failed = True
    try:
        try:
            server = LocalModal(directory, arguments=options, own_session=True)
            server.start()
        except RuntimeError:
            raise Refused(server.log.strip() or "the server didn't start") from None
        try:
            code = _command(server, arguments.run_command)
        finally:
            server.stop()
        failed = code != 0
        return code
    finally:
        if state_dir is None:
            if failed and (journal := directory / "faults.jsonl").exists() and '"set"' in journal.read_text():
                kept = Path(tempfile.mkdtemp(prefix="local-modal-faults-")) / journal.name
                shutil.copy(journal, kept)
                print(f"To repeat the faults of this run: --faults {kept}", file=sys.stderr)
            shutil.rmtree(directory, ignore_errors=True)


def _own_state_dir(options: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take --state-dir out of the options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--state-dir", type=Path)
    known, rest = parser.parse_known_args(list(options))
    return rest, known.state_dir


def _command(server: LocalModal, command: Sequence[str]) -> int:
    """Run it; returns its exit code, as a shell would: 128 + the number of the signal that ended it."""
    try:
        process = subprocess.Popen(list(command), env=server.env)
    except OSError as error:
        raise Refused(f"{command[0]}: {error.strerror}") from None
    # Ctrl-C reaches the command, too: it decides what becomes of it, and the server goes afterwards.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    passing_on = signal.signal(signal.SIGTERM, lambda signum, _: os.kill(process.pid, signum))
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, passing_on)
    return 128 - code if code < 0 else code
