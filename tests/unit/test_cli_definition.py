"""`airflow modalflow ...` hands on everything, whatever Airflow's argument parser thinks of it."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.cli.definition import get_modalflow_cli_commands


def parser() -> argparse.ArgumentParser:
    """A parser as Airflow builds it: a subparser per command, with a global option beside."""
    top = argparse.ArgumentParser(prog="airflow")
    top.add_argument("--verbose", action="store_true")
    subparsers = top.add_subparsers(dest="subcommand")
    subparsers.required = True
    for command in get_modalflow_cli_commands():
        sub = subparsers.add_parser(command.name, help=command.help)
        for arg in command.args:
            arg.add_to_parser(sub)
        sub.set_defaults(func=command.func)
    return top


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["-h"],
        ["--version"],
        ["--verbose"],
        ["--debug", "create"],
        ["create", "--env", "x", "--config", "y"],
        ["dags", "list", "--env=dev", "--json"],
        ["dags", "trigger", "my_dag", "--conf", '{"a": "b c"}', "--run-id", "-1"],
        ["logs", "a", "b", "--", "-c"],
        ["", " "],
    ],
)
def test_every_argument_arrives(arguments: list[str]) -> None:
    assert parser().parse_args(["modalflow", *arguments]).arguments == arguments


# No process can be given a NUL; it is what the command's parser takes for the beginning of an option.
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(WORDS | st.sampled_from(["--help", "-h", "--env", "dev", "--json", "-x=1"])))
def test_any_arguments_arrive(arguments: list[str]) -> None:
    # Python's argparse drops a first "--", which means nothing there for click either.
    if "--" in arguments:
        return
    assert parser().parse_args(["modalflow", *arguments]).arguments == arguments
