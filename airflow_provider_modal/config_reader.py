"""How is text that a person wrote as YAML turned into typed values, and what is said where it is wrong?

Messages name the file, the key, what was found and what is allowed; never a value that may be a password.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_modal.errors import ConfigError

_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def load_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    :raises ConfigError: the file is missing, can't be read, or is not YAML; also when a key is given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"configuration file {path} does not exist; write one or name another with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"configuration file {path} can't be read: {reason}") from None
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # Not the exception's own text nor what it quotes: that may be a password.
        problem = _QUOTED.sub("...", getattr(error, "problem", None) or "it cannot be parsed")
        raise ConfigError(f"{path} is not valid YAML{where}: {problem}") from None
    except (ValueError, RecursionError) as error:
        # A date that doesn't exist; lists within lists without end.
        raise ConfigError(f"{path} is not valid YAML: {type(error).__name__} while it was read") from None
    return data


class _Loader(yaml.SafeLoader):
    """YAML without surprises: a key that is given twice is an error, where YAML lets the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key {key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


class Reader:
    """Reads typed values out of parsed YAML; every method raises a :class:`ConfigError` that says where.

    :param source: the file's name, for messages.
    :param environ: where ``${VAR}`` looks.
    """

    def __init__(self, source: str, environ: Mapping[str, str]) -> None:
        self.source = source
        self.environ = environ

    def known_keys(self, prefix: str, section: Mapping[Any, Any], known: list[str]) -> None:
        """Refuse unknown keys, naming the nearest known one."""
        for key in section:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = (
                    f"did you mean {prefix}{close[0]}?"
                    if close
                    else f"known keys: {', '.join(sorted(known))}"
                )
                raise ConfigError(f"{self.source}: unknown key {prefix}{key}; {hint}")

    def section(
        self, data: Mapping[str, Any], name: str, known: list[str] | None, prefix: str = ""
    ) -> Mapping[str, Any]:
        """Return a section's keys and values; empty if it is not there."""
        section = data.get(name)
        if section is None:
            return {}
        if not isinstance(section, Mapping):
            raise ConfigError(
                f"{self.source}: {prefix}{name} must hold keys and values, found {kind(section)}"
            )
        if known is not None:
            self.known_keys(f"{prefix}{name}.", section, known)
        return section

    def dataclass(self, cls: type, data: Mapping[str, Any], name: str, prefix: str = "") -> Any:
        """Return a section as a dataclass, whose fields are the keys and whose annotations are the types."""
        section = self.section(data, name, [f.name for f in fields(cls)], prefix)
        values: dict[str, Any] = {}
        for f in fields(cls):
            if f.name in section:
                values[f.name] = self.value(f"{prefix}{name}.{f.name}", section[f.name], str(f.type))
        return cls(**values)

    def value(self, where: str, value: Any, annotation: str) -> Any:
        """Return a value as the type that a field's annotation names."""
        if value is None and "None" in annotation:
            return None
        if annotation.startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"{self.source}: {where} must be a list of texts, found {kind(value)}")
            return tuple(self.text(where, item) for item in value)
        if annotation.startswith("Mapping"):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{self.source}: {where} must hold keys and values, found {kind(value)}")
            return {str(key): self.text(f"{where}.{key}", item) for key, item in value.items()}
        if isinstance(value, str):
            value = self.text(where, value)
        if annotation == "bool":
            return self.boolean(where, value)
        if annotation.startswith("str"):
            return self.text(where, value)
        return self.number(where, value, whole=annotation.startswith("int"))

    def boolean(self, where: str, value: Any) -> bool:
        """Return true or false."""
        known = {"true": True, "false": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in known:
            return known[value.lower()]
        raise ConfigError(f"{self.source}: {where} must be true or false, found {shown(value)}")

    def number(self, where: str, value: Any, *, whole: bool) -> int | float:
        """Return a finite number, whole where it is one."""
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if number != number or abs(number) == float("inf") or (whole and number != int(number)):
                raise ValueError
        except (TypeError, ValueError):
            wanted = "a whole number" if whole else "a number"
            raise ConfigError(f"{self.source}: {where} must be {wanted}, found {shown(value)}") from None
        return int(number) if number == int(number) else number

    def text(self, where: str, value: Any) -> str:
        """Return a text with its ``${VAR}`` filled in; ``$${VAR}`` stands for the characters ``${VAR}``."""
        if isinstance(value, bool):
            return str(value)
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{self.source}: {where} must be a text, found {kind(value)}")

        def variable(match: re.Match[str]) -> str:
            escaped, name = match.groups()
            if escaped:
                return f"${{{name}}}"
            try:
                return self.environ[name]
            except KeyError:
                raise ConfigError(
                    f"{self.source}: {where} refers to the environment variable {name}, which is not set; "
                    f"where the text ${{{name}}} itself is meant, write $${{{name}}}"
                ) from None

        return _VARIABLE.sub(variable, str(value))

    def named(self, section: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
        """Return a section whose keys are names of the user's choice, as texts: YAML reads ``8`` as a number.

        :raises ConfigError: two keys are the same name.
        """
        named: dict[str, Any] = {}
        for key, value in section.items():
            if str(key) in named:
                raise ConfigError(
                    f"{self.source}: {prefix}{key} is given twice, as a text and as a number; remove one"
                )
            named[str(key)] = value
        return named

    def within(
        self, where: str, value: float, *, least: float = 0, most: float = float("inf"), why: str
    ) -> None:
        """Refuse a number that is accepted by its type and can't work.

        :param why: what would go wrong beyond the limit.
        """
        if not least <= value <= most:
            limit = f"at least {least:g}" if value < least else f"at most {most:g}"
            raise ConfigError(f"{self.source}: {where} must be {limit}, found {value}: {why}")

    def positive(self, where: str, section: Any, zero_allowed: tuple[str, ...] = ()) -> None:
        """Refuse negative numbers among a section's values, and zeros but for the keys that allow them."""
        for f in fields(section):
            value = getattr(section, f.name)
            if isinstance(value, bool):
                continue
            low = 0 if f.name in zero_allowed else None
            if isinstance(value, int | float) and (value < 0 or (value == 0 and low is None)):
                wanted = "0 or more" if low == 0 else "more than 0"
                raise ConfigError(f"{self.source}: {where}.{f.name} must be {wanted}, found {value}")


def kind(value: Any) -> str:
    """Return what sort of thing a value is, in a person's words."""
    names_of = {
        dict: "keys and values",
        list: "a list",
        str: "a text",
        bool: "true/false",
        type(None): "nothing",
    }
    return names_of.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a plain value as it stands, and of others what sort of thing they are."""
    return repr(value) if isinstance(value, str | int | float | bool) else kind(value)
