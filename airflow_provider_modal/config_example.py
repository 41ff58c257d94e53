"""What may a config.yaml hold? Written from the dataclasses that read it and the texts below their fields."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from airflow_provider_modal import config, names

_WIDTH = 100
_HEADER = """\
The configuration of an environment: modalflow create --env dev --config config.yaml

Keys that begin with # show their default; take the # away to change one.
Only database.connection_string is needed.
${VAR} reads an environment variable of whoever runs create; $${VAR} is the text itself."""
_DATABASE = "database: PostgreSQL 13 or later that Modal's containers can reach; percent-encode its password."
_UI = "ui.users: who may log in to modalflow ui; without users, a password is made and shown each time."
_AIRFLOW = "airflow: any other option of Airflow, as section.option"
_KEYS = "keys: made by create; needed to create an environment anew on its old database."


def example() -> str:
    """Return a config.yaml with all keys, their defaults and what they mean.

    As it is, it is a valid configuration that changes no default.
    """
    parts = [
        _comment(_HEADER),
        f"{_comment(_DATABASE)}\ndatabase:\n  connection_string: ${{DATABASE_URL}}",
        _section("scheduler", config.SchedulerConfig),
        _section("executor", config.ExecutorConfig),
        _section("workers", config.WorkerProfile, names.DEFAULT_PROFILE),
        _section("image", config.ImageConfig),
        _section("xcom", config.XComConfig),
        f"{_comment(_UI)}\nui:\n  users:\n" + _keys(config.UiUser, "    ", entry="alice"),
        f"{_comment(_AIRFLOW)}\nairflow:\n  #core.max_active_runs_per_dag: 4",
        f"{_comment(_KEYS)}\nkeys:\n  #fernet_key: ${{FERNET_KEY}}",
    ]
    return "\n\n".join(parts) + "\n"


def documented(cls: type) -> dict[str, str]:
    """Return what stands below each field of a dataclass of ours, by name.

    :raises ValueError: a field has nothing below it.
    """
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    told: dict[str, str] = {}
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            told[statement.target.id] = inspect.cleandoc(str(below.value.value))
    missing = {f.name for f in fields(cls)} - set(told)
    if missing:
        raise ValueError(f"{cls.__name__} does not say what these are: {', '.join(sorted(missing))}")
    return told


def _section(name: str, cls: type, entry: str | None = None) -> str:
    # The class's text is reStructuredText.
    about = re.sub(r"``", "", inspect.cleandoc(cls.__doc__ or ""))
    if entry is None:
        return f"{_comment(about)}\n{name}:\n" + _keys(cls, "  ")
    return f"{_comment(about)}\n{name}:\n  {entry}:\n" + _keys(cls, "    ")


def _keys(cls: type, indent: str, entry: str | None = None) -> str:
    told = documented(cls)
    lines = [f"{indent}#{entry}:"] if entry else []
    inner = f"{indent}  " if entry else indent
    for f in fields(cls):
        lines += [_comment(told[f.name], inner), f"{inner}#{f.name}: {_shown(f)}"]
    return "\n".join(lines)


def _shown(f: Field[Any]) -> str:
    """Return a field's default as YAML."""
    value = f.default
    if value is MISSING:
        value = f.default_factory() if f.default_factory is not MISSING else None
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str):
        return value or '""'
    return "{}" if isinstance(value, Mapping) and not value else json.dumps(value)


def _comment(text: str, indent: str = "") -> str:
    lines = [line for part in text.splitlines() for line in (textwrap.wrap(part, _WIDTH) or [""])]
    return "\n".join(f"{indent}# {line}".rstrip() for line in lines)
