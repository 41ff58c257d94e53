"""What the command line imports: every `airflow` command loads our definitions, and help has to be quick."""

from __future__ import annotations

import json
import subprocess
import sys


def imported_by(script: str, before: str = "pass") -> set[str]:
    """Return the modules that ``script`` loads in a new interpreter that has run ``before``."""
    code = (
        f"{before}\nimport sys, json\nbefore = set(sys.modules)\n{script}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def heads(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_the_commands_import_neither_modal_nor_airflow_nor_rich() -> None:
    loaded = heads(imported_by("import airflow_provider_modal.cli.main"))
    assert "click" in loaded
    assert not loaded & {"modal", "airflow", "rich", "psycopg2", "sqlalchemy", "grpclib"}


def test_showing_help_imports_no_more() -> None:
    script = (
        "from airflow_provider_modal.cli.main import cli\n"
        "for command in ([], ['create'], ['dags', 'trigger'], ['logs']):\n"
        "    try: cli.main([*command, '--help'])\n"
        "    except SystemExit: pass"
    )
    assert not heads(imported_by(script)) & {"modal", "airflow", "rich", "psycopg2", "sqlalchemy"}


def test_our_definitions_add_nothing_to_airflow_but_themselves() -> None:
    script = (
        "from airflow_provider_modal.cli.definition import get_modalflow_cli_commands\n"
        "assert [command.name for command in get_modalflow_cli_commands()] == ['modalflow']"
    )
    added = imported_by(script, before="import airflow.cli.cli_config")
    assert added - {"airflow_provider_modal"} == {
        "airflow_provider_modal.cli",
        "airflow_provider_modal.cli.definition",
    }
