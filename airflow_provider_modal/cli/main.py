"""Where does the command line start, and how does it end?

``main`` is the console script ``modalflow``; ``airflow_command`` is what ``airflow modalflow`` calls. Both
run the same click commands, one module per group. Only click and small modules of ours are imported here:
modal, Airflow and rich are imported by the functions that need them, so that help is quick.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from airflow_provider_modal import __version__
from airflow_provider_modal.cli import (
    clean,
    config_file,
    costs,
    dags,
    doctor,
    environment,
    logs,
    runs,
    status,
    ui,
)
from airflow_provider_modal.cli.failures import ReportingGroup

if TYPE_CHECKING:
    import argparse


@click.group(cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="modalflow")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (also: MODALFLOW_DEBUG=1).")
def cli(debug: bool) -> None:
    """Run Apache Airflow on Modal, without servers.

    \b
    First steps:
      modal token new                                       once: an account at modal.com
      modalflow config example > config.yaml                needs a PostgreSQL database, see create --help
      modalflow create --env dev --config config.yaml
      modalflow dags create --env dev --file my_dag.py
      modalflow dags trigger --env dev my_dag --wait
      modalflow logs --env dev my_dag RUN_ID

    Set MODALFLOW_ENV instead of repeating --env. Results go to stdout, progress and errors to stderr; with
    --json, stdout is one JSON document, and in case of an error {"error": {"kind", "message"}}.

    Shells complete commands after: eval "$(_MODALFLOW_COMPLETE=bash_source modalflow)" (or zsh_source).

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 Modal or the database is not
    reachable, 130 interrupted.
    """


cli.add_command(config_file.config)
cli.add_command(environment.create)
cli.add_command(environment.destroy)
cli.add_command(dags.dags)
cli.add_command(runs.runs)
cli.add_command(status.status)
cli.add_command(doctor.doctor)
cli.add_command(logs.logs)
cli.add_command(costs.costs)
cli.add_command(ui.ui)
cli.add_command(clean.clean)


def main() -> NoReturn:
    """Run ``modalflow`` with the process's arguments and exit with its code."""
    _run(sys.argv[1:], "modalflow")


def airflow_command(args: argparse.Namespace) -> NoReturn:
    """Run ``airflow modalflow``; ``args.arguments`` is everything that followed."""
    _run(args.arguments, "airflow modalflow")


def _run(arguments: list[str], program: str) -> NoReturn:
    cli.main(args=arguments, prog_name=program)
    raise AssertionError("click's main exits")  # for the type checker: its return type depends on a flag
