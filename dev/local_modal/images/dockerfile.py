"""The lines of a Dockerfile as instructions, and the shell lines in them as commands; nothing is executed."""

from __future__ import annotations

import fnmatch
import json
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

_SUBSTITUTION = re.compile(r"\$\([^()]*\)|`[^`]*`")
SUBSTITUTED = "$substituted"
"""Stands for what a command substitution would have printed."""
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_PUNCTUATION = frozenset("();<>|&")


class Instruction(NamedTuple):
    """One instruction, its continuation lines joined."""

    verb: str
    """In upper case."""
    rest: str


class Copy(NamedTuple):
    """A COPY or ADD of files of the build context."""

    sources: list[str]
    target: str


def instructions(lines: Iterable[str]) -> Iterator[Instruction]:
    """The instructions of a Dockerfile given as lines, without comments."""
    pending = ""
    for line in "\n".join(lines).splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.endswith("\\"):
            pending += text[:-1] + " "
            continue
        verb, _, rest = (pending + text).partition(" ")
        pending = ""
        yield Instruction(verb.upper(), rest.strip())


def commands(run: str) -> Iterator[list[str]]:
    """The simple commands of a RUN instruction's rest, as words: `a && b; c` are three. Redirections and
    variables set for one command are left out. A line that no shell could read has none.
    """
    try:
        if run.startswith("["):
            yield [str(word) for word in json.loads(run)]
            return
        lexer = shlex.shlex(_SUBSTITUTION.sub(SUBSTITUTED, run), posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        lexer.commenters = ""
        words = list(lexer)
    except ValueError:
        return
    command: list[str] = []
    skip = False
    for word in [*words, ";"]:
        operator = bool(word) and set(word) <= _PUNCTUATION
        if operator and not set(word) & set("<>"):
            if command:
                yield command
            command = []
        elif operator:
            skip = True  # the word after it is a file
        elif skip:
            skip = False
        elif command or not _ASSIGNMENT.match(word):
            command.append(word)


def environment(rest: str) -> dict[str, str]:
    """The variables of an ENV instruction."""
    words = shlex.split(rest)
    if words and "=" not in words[0]:  # the old form: ENV NAME the whole rest
        name, _, value = rest.strip().partition(" ")
        return {name: value.strip()}
    return dict(word.split("=", 1) for word in words if "=" in word)


def copy(rest: str) -> Copy | None:
    """What a COPY or ADD instruction takes from the build context; None if it takes it from elsewhere."""
    words = rest.split()
    while words and words[0].startswith("--"):
        if words.pop(0).startswith("--from="):
            return None
    if words and words[0].startswith("["):
        words = [str(word) for word in json.loads(" ".join(words))]
    return Copy(words[:-1], words[-1]) if len(words) > 1 else None


def copied(copying: Copy, context: Sequence[str], workdir: str) -> Mapping[str, str]:
    """Where the files of a build context, given by their paths in it, land: source by path in the image."""
    landed: dict[str, str] = {}
    target = posixpath.normpath(posixpath.join(workdir or "/", copying.target))
    into = copying.target.endswith(("/", "/.")) or copying.target in (".", "./") or len(copying.sources) > 1
    for source in copying.sources:
        pattern = _absolute(source)
        for path in context:
            name = _absolute(path)
            if pattern == "/" or name.startswith(pattern + "/"):  # a directory: what is in it
                relative = name[len(pattern.rstrip("/")) + 1 :]
                landed[posixpath.join(target, relative)] = path
            elif fnmatch.fnmatchcase(name, pattern):
                landed[posixpath.join(target, posixpath.basename(name)) if into else target] = path
    return landed


def _absolute(path: str) -> str:
    # normpath keeps two leading slashes.
    return posixpath.normpath("/" + path.lstrip("/"))
