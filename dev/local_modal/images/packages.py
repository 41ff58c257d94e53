"""Which Python packages do a Dockerfile's RUN lines install?

Read are pip, `uv pip`, `uv sync` and `poetry install`, with their requirement files. What can't be known
without running something (a variable, a URL without a name, another installer) is passed over.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import toml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from local_modal.images import dockerfile

ReadFile = Callable[[str], "str | None"]
"""The text of a file that was copied into the image, by its path there; None if it isn't known."""

INSTALLERS = frozenset({"pip", "wheel", "uv", "setuptools", "poetry"})
"""A line that installs nothing else prepares a build (`debian_slim` begins with one)."""
MAX_DEPTH = 10
"""Requirement files within requirement files."""

_PIP = re.compile(r"pip(\d+(\.\d+)?)?")
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
_FILES = ("-r", "--requirement", "--requirements")
_WITH_VALUE = """
-c --constraint --constraints -i --index-url --extra-index-url --index --default-index -f --find-links -e
--editable -t --target -p --python --prefix --root --src --platform --python-version --implementation
--abi --no-binary --only-binary --no-build-isolation-package --config-settings --config-setting -C
--global-option --upgrade-strategy --progress-bar --timeout --retries --trusted-host --cache-dir --log
--proxy --cert --client-cert --exists-action --index-strategy --keyring-provider --resolution
--prerelease --exclude-newer --link-mode --override --overrides --build-constraint --torch-backend
--upgrade-package -P --reinstall-package --refresh-package --report --extra --group
"""
"""Options of `pip install` and `uv pip install` whose next word isn't a requirement."""
_OPTIONS_WITH_VALUE = frozenset(_WITH_VALUE.split())
_EGG = re.compile(r"[#&]egg=([A-Za-z0-9._-]+)")
_POETRY_OWN = "python"


def installed_by(run: str, read: ReadFile, workdir: str = "/") -> list[Requirement]:
    """What a RUN instruction installs, as far as that can be read from it."""
    found: list[Requirement] = []
    for words in dockerfile.commands(run):
        if words[0] == "cd" and len(words) == 2:
            workdir = posixpath.join(workdir, words[1])
        found += _command(words, read, workdir)
    if {requirement.name for requirement in found} <= INSTALLERS:
        return []
    return found


def _command(words: list[str], read: ReadFile, workdir: str) -> Iterator[Requirement]:
    words = [posixpath.basename(words[0]), *words[1:]]
    if words[0] == "sudo" and len(words) > 1:
        words = [posixpath.basename(words[1]), *words[2:]]
    if _PYTHON.fullmatch(words[0]) and words[1:3] == ["-m", "pip"]:
        words = words[2:]
    elif words[:2] == ["uv", "pip"]:
        words = words[1:]
    if _PIP.fullmatch(words[0]) and "install" in words:
        yield from _pip(words[words.index("install") + 1 :], read, workdir)
    elif words[:2] == ["uv", "sync"]:
        project = next((w.partition("=")[2] for w in words if w.startswith("--project=")), workdir)
        yield from _project(read(posixpath.join(project, "pyproject.toml")))
    elif words[:2] == ["poetry", "install"]:
        yield from _project(read(posixpath.join(workdir, "pyproject.toml")))


def _pip(words: list[str], read: ReadFile, workdir: str) -> Iterator[Requirement]:
    pending = list(words)
    while pending:
        word = pending.pop(0)
        option, equals, value = word.partition("=")
        if option in _FILES or (word.startswith("-r") and not word.startswith("--")):
            path = value if equals and option in _FILES else word[2:] if option not in _FILES else ""
            path = path or (pending.pop(0) if pending else "")
            yield from _requirement_file(posixpath.join(workdir, path), read, MAX_DEPTH)
        elif word in _OPTIONS_WITH_VALUE and pending:
            pending.pop(0)
        elif not word.startswith("-"):
            yield from _requirement(word)


def _requirement_file(path: str, read: ReadFile, depth: int) -> Iterator[Requirement]:
    text = read(posixpath.normpath(path))
    if text is None or depth == 0:
        return
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        option = re.match(r"(-r|--requirement)[\s=]+(.+)|-r(\S+)", line)
        if option:
            nested = (option[2] or option[3]).strip()
            yield from _requirement_file(posixpath.join(posixpath.dirname(path), nested), read, depth - 1)
        elif line and not line.startswith("-"):
            yield from _requirement(re.split(r"\s--", line)[0].strip())  # without --hash=...


def _project(text: str | None) -> Iterator[Requirement]:
    """The dependencies that a pyproject.toml declares, for the standard's and poetry's own tables."""
    try:
        content: Mapping[str, Any] = toml.loads(text or "")
    except toml.TomlDecodeError:
        return
    for line in content.get("project", {}).get("dependencies", ()):
        yield from _requirement(line)
    for name, wanted in content.get("tool", {}).get("poetry", {}).get("dependencies", {}).items():
        table = wanted if isinstance(wanted, dict) else {"version": wanted}
        if name == _POETRY_OWN or table.get("optional"):
            continue
        version = table.get("version", "")
        marker = f" ; {table['markers']}" if table.get("markers") else ""
        # A caret or tilde isn't a version specifier of the standard: then the name has to do.
        yield from _requirement(f"{name}{version if _is_specifier(version) else ''}{marker}")


def _is_specifier(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(SpecifierSet(text))
    except InvalidSpecifier:
        return False


def _requirement(text: str) -> Iterator[Requirement]:
    egg = _EGG.search(text)
    if egg and " @ " not in text:
        text = egg[1]
    try:
        if text.endswith(".whl") and " @ " not in text:
            name, version, _, _ = parse_wheel_filename(posixpath.basename(text))
            text = f"{name}=={version}"
        yield Requirement(text)
    except (InvalidRequirement, InvalidWheelFilename):
        return  # a path, a URL or a variable: its name isn't known
