"""Which commands do we add to ``airflow``?

Loaded by every ``airflow`` command, so it imports nothing but Airflow's own definitions: one command,
``modalflow``, whose arguments are handed unread to the click commands of ``cli.main``.
"""

from __future__ import annotations

import argparse

from airflow.cli.cli_config import ActionCommand, Arg, lazy_load_command


class _Everything(Arg):
    """All that follows, options included.

    A positional argument with ``nargs=REMAINDER`` alone loses options that come first
    (``airflow modalflow --help``). A parser for which no character starts an option takes every argument as
    positional, so that click shows its own help and reports its own errors.
    """

    def add_to_parser(self, parser: argparse.ArgumentParser) -> None:
        """Make ``parser`` take every argument."""
        parser.prefix_chars = "\0"
        super().add_to_parser(parser)


def get_modalflow_cli_commands() -> list[ActionCommand]:
    """Return the commands that Airflow's command line offers because this provider is installed."""
    return [
        ActionCommand(
            name="modalflow",
            help="Run Airflow on Modal: create an environment, upload and trigger DAGs, read logs",
            func=lazy_load_command("airflow_provider_modal.cli.main.airflow_command"),
            args=(
                _Everything(("arguments",), nargs=argparse.REMAINDER, help="see airflow modalflow --help"),
            ),
        )
    ]
