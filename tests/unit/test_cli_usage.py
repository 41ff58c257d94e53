"""Usage, exit codes and output of the commands, as far as they go without Modal."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from airflow_provider_modal import __version__
from airflow_provider_modal.cli.failures import DEBUG, ReportingGroup, interruptible
from airflow_provider_modal.cli.main import cli
from airflow_provider_modal.errors import ConfigError, ModalflowError, NotFoundError, UnreachableError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODALFLOW_ENV", raising=False)
    monkeypatch.delenv(DEBUG, raising=False)


def modalflow(*arguments: str, env: dict[str, str] | None = None, input: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="modalflow", env=env, input=input)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        else:
            found.append(((*path, name), command))
    return found


COMMANDS = commands(cli)


def test_all_commands_are_there() -> None:
    assert {" ".join(path) for path, _ in COMMANDS} == {
        "clean",
        "config check",
        "config example",
        "costs",
        "create",
        "destroy",
        "doctor",
        "dags create",
        "dags update",
        "dags delete",
        "dags list",
        "dags pause",
        "dags unpause",
        "dags sync",
        "dags trigger",
        "status",
        "runs list",
        "runs show",
        "logs",
        "ui",
    }


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_help_shows_an_example_that_is_correct(path: tuple[str, ...], command: click.Command) -> None:
    """The options of each example exist: it is parsed as the command would, without being run."""
    result = modalflow(*path, "--help")
    assert result.exit_code == 0
    examples = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("modalflow ")]
    assert examples
    for example in examples:
        words = re.split("[|>]", example)[0].split("#")[0].replace('\'{"day": "2025-01-01"}\'', "{}").split()
        assert tuple(words[1 : 1 + len(path)]) == path
        command.make_context("modalflow", words[1 + len(path) :], resilient_parsing=False)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["dags", "--help"], ["dags", "list", "-h"]])
def test_help_is_success_on_stdout(arguments: list[str]) -> None:
    result = modalflow(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Usage: modalflow" in result.stdout


def test_version() -> None:
    result = modalflow("--version")
    assert (result.exit_code, result.stdout) == (0, f"modalflow, version {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Commands:"),
        (["creat"], "No such command 'creat'"),
        (["create"], "Missing option '--config'"),
        (["create", "--config", "c.yaml"], "MODALFLOW_ENV"),
        (["create", "--config"], "requires an argument"),
        (["create", "--env", "dev", "--config", "nothing.yaml"], "nothing.yaml does not exist"),
        (["create", "--env", "A B", "--config", "c.yaml"], "environment name 'A B' is not allowed"),
        (["create", "--env", "../x", "--config", "c.yaml"], "environment name '../x' is not allowed"),
        (["destroy", "--env", ""], "environment name '' is not allowed"),
        (["dags", "list", "--surplus", "--env", "dev"], "--surplus"),
        (["dags", "create", "--env", "dev"], "Missing option '--file'"),
        (["dags", "create", "--env", "dev", "--file", "no.py"], "no.py does not exist"),
        (["dags", "create", "--env", "dev", "--file", "."], "is a directory"),
        (["dags", "create", "--env", "dev", "--file", "x.py", "--timeout-seconds", "0"], "--timeout-seconds"),
        (["dags", "delete", "--env", "dev", "--file", "../x.py", "--yes"], "'../x.py' is not allowed"),
        (["dags", "trigger", "--env", "dev"], "DAG_ID"),
        (["dags", "trigger", "--env", "dev", "x", "--conf", "{"], "not JSON"),
        (["dags", "trigger", "--env", "dev", "x", "--conf", "[1]"], "must be a JSON object"),
        (["dags", "trigger", "--env", "dev", "x", "--timeout", "5"], "--timeout goes with --wait"),
        (["runs", "show", "--env", "dev", "x"], "RUN_ID"),
        (["runs", "list", "--env", "dev", "--state", "done"], "'success'"),
        (["runs", "list", "--env", "dev", "--limit", "0"], "--limit"),
        (["costs", "--env", "dev", "--since", "7"], "such as 30d"),
        (["config", "check"], "FILE"),
        (["config", "check", "nothing.yaml"], "nothing.yaml does not exist"),
        (["logs", "--env", "dev", "x", "y", "--try", "0"], "--try"),
        (["logs", "--env", "dev", "x", "y", "--map-index", "a"], "--map-index"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], says: str) -> None:
    result = modalflow(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_the_environment_may_come_from_a_variable() -> None:
    result = modalflow("create", "--config", "nothing.yaml", env={"MODALFLOW_ENV": "Not Allowed"})
    assert "'Not Allowed' is not allowed" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["create", "--json"], ["create", "--env", "A", "--config", "c", "--json"], ["x", "--json"]]
)
def test_errors_are_json_on_stdout_and_text_on_stderr(arguments: list[str]) -> None:
    result = modalflow(*arguments)
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "config"
    assert error["message"] in result.stderr


def test_destroy_asks_for_the_name() -> None:
    result = modalflow("destroy", "--env", "dev", input="prod\n")
    assert result.exit_code == 2
    assert "all DAG files and logs" in result.stderr
    assert "nothing was removed" in result.stderr


def test_destroy_without_anybody_to_ask_names_the_option() -> None:
    result = modalflow("destroy", "--env", "dev", "--keep-volume", input="")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert "DAG files" not in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"database: {connection_string: 'sqlite:///x'}", "found SQLite"),
        (b"databse: {}", "did you mean database?"),
        (b"{", "not valid YAML"),
    ],
)
def test_a_wrong_configuration_is_told_without_calling_modal(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    for command in (["create", "--env", "dev", "--config"], ["config", "check"]):
        result = modalflow(*command, str(path), env={"MODAL_SERVER_URL": "http://x:1"})
        assert result.exit_code == 2
        assert says in result.stderr
        assert len(result.stderr.splitlines()) <= 2


class Odd(Exception):
    pass


FAILURES = {
    "failed": (ModalflowError("it failed"), 1, "it failed"),
    "config": (ConfigError("wrong"), 2, "wrong"),
    "not-found": (NotFoundError("not there"), 3, "not there"),
    "unreachable": (UnreachableError("away"), 4, "away"),
    "click": (click.BadParameter("bad"), 2, "bad"),
    "disk": (OSError(28, "No space left on device", "/tmp/x"), 1, "/tmp/x: No space left on device"),
    "bug": (Odd("what"), 1, "unexpected Odd: what"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
    "exit": (click.exceptions.Exit(1), 1, ""),
}


@click.group(cls=ReportingGroup)
def failing() -> None:
    pass


@failing.command()
@click.argument("how")
@click.option("--json", is_flag=True)
@click.option("--debug", is_flag=True)
def fail(how: str, json: bool, debug: bool) -> None:
    raise FAILURES[how][0]


@failing.command()
def wait_for_it() -> None:
    with interruptible("the run goes on"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", FAILURES)
def test_each_failure_has_its_exit_code_and_a_sentence(how: str) -> None:
    _, code, says = FAILURES[how]
    result = CliRunner().invoke(failing, ["fail", how])
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("how", sorted(set(FAILURES) - {"exit"}))
def test_each_failure_is_json_if_that_is_asked_for(how: str) -> None:
    result = CliRunner().invoke(failing, ["fail", how, "--json"])
    error = json.loads(result.stdout)["error"]
    assert FAILURES[how][2] in error["message"]
    assert result.exit_code == FAILURES[how][1]


@pytest.mark.parametrize(("arguments", "env"), [(["--debug"], {}), ([], {DEBUG: "1"})])
def test_tracebacks_are_for_debugging(arguments: list[str], env: dict[str, str]) -> None:
    result = CliRunner().invoke(failing, ["fail", "bug", *arguments], env=env)
    assert "Traceback" in result.stderr
    assert result.exit_code == 1


def test_an_interrupted_command_says_what_was_left() -> None:
    result = CliRunner().invoke(failing, ["wait-for-it"])
    assert result.exit_code == 130
    assert "the run goes on" in result.stderr


def test_a_file_name_that_looks_like_json_option_is_not_one(tmp_path: Path) -> None:
    result = modalflow("runs", "show", "--env", "A", "--", "--json", "x")
    assert result.stdout == ""
    assert result.exit_code == 2


def test_shells_complete_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        index = str(len(words.split(" ")) - 1)
        environ = {"_MODALFLOW_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": index}
        return [line.partition(",")[2] for line in modalflow(env=environ).stdout.splitlines()]

    assert completed("modalflow da") == ["dags"]
    assert {"pause", "unpause"} <= set(completed("modalflow dags "))
    assert completed("modalflow runs list --state f") == ["failed"]


def test_no_message_is_coloured_where_no_terminal_is() -> None:
    result = modalflow("create", "--env", "A", "--config", "c")
    assert "\x1b" not in result.stderr + result.stdout
    assert os.environ.get("FORCE_COLOR") is None
