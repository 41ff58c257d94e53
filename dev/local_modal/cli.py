"""The command line: start a server, run something with it, look at it, disturb it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from local_modal import cli_fault, cli_run, cli_top
from local_modal.access import read_token
from local_modal.cli_common import PROGRAM, Raw, Refused, add_state_dir
from local_modal.clients import ControlError, client_environ, running_server
from local_modal.faults import FaultRefused

QUICK = ("env", "status", "top", "fault")
"""Commands that need nothing of the server's code, whose import takes a second."""
DESCRIPTION = """\
A local Modal server: one process that the unmodified `modal` package talks to instead of Modal's cloud. No
account, no Docker. Containers are processes of this machine; deployed apps, volumes, dicts, queues and
secrets live in the state directory and survive a restart.

  python -m local_modal run -- modal run app.py        one command with a server of its own

  python -m local_modal serve                          a server that stays, until Ctrl-C
  eval "$(python -m local_modal env)"                  in another terminal: `modal` uses it from now on
  python -m local_modal top                            watch it
  python -m local_modal fault --help                   disturb it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 fine, 1 failed, 2 wrong usage (`run`: its command's)."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = _parser(quick=bool(words) and words[0] in QUICK)
    try:
        own, for_serve, run_command = cli_run.split(words)
        options = parser.parse_args(own)
        if run_command:
            parser.parse_args(["serve", *for_serve])  # says now what is wrong with them
            options.serve_options, options.run_command = for_serve, run_command
        return int(options.command(options))
    except (ControlError, FaultRefused, Refused) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # such as `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(quick: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description=DESCRIPTION, formatter_class=Raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    if not quick:
        from local_modal import cli_serve

        cli_serve.add_command(commands)
    cli_run.add_command(commands)

    env = commands.add_parser(
        "env", help="print the environment for clients",
        description='Print export lines for a shell:  eval "$(python -m local_modal env --state-dir DIR)"',
    )  # fmt: skip
    add_state_dir(env)
    env.set_defaults(command=_env)

    cli_top.add_commands(commands)
    cli_fault.add_command(commands)
    return parser


def _env(arguments: argparse.Namespace) -> int:
    running = running_server(arguments.state_dir)
    for name, value in client_environ(running["server_url"], read_token(arguments.state_dir)).items():
        print(f"export {name}={shlex.quote(value)}")
    if running["ca_file"]:
        # Not as a variable: SSL_CERT_FILE and the like would replace what else the client trusts. And last:
        # an eval without quotes makes one line of it all.
        print(f"# Tunnels (modal.forward) have certificates that {running['ca_file']} verifies.")
    return 0
