"""What is assumed, what was seen, and what that means."""

from __future__ import annotations

import enum
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloud.session import Session

RECORDED = Path(__file__).with_name("local_modal.json")
"""What the local Modal server did when the check was last recorded against it (`--record`)."""


class Verdict(enum.Enum):
    """How an assumption stands after the check."""

    AS_ASSUMED = "as assumed"
    DIFFERENT = "different"
    UNCHECKED = "could not be checked"


@dataclass(frozen=True)
class Seen:
    """The outcome of one check.

    Args:
        text: what was seen, in one or two short sentences.
        verdict: whether that is what is assumed.
        meaning: of a difference: what follows from it, and for whom.
        data: the figures behind it, for `--json`.
    """

    text: str
    verdict: Verdict
    meaning: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def judge(holds: bool, text: str, meaning: str, **data: Any) -> Seen:
    """What was seen, as assumed if `holds`; otherwise `meaning` says what follows."""
    if holds:
        return Seen(text, Verdict.AS_ASSUMED, data=data)
    return Seen(text, Verdict.DIFFERENT, meaning, data)


def unchecked(reason: str) -> Seen:
    """It can't be seen here; `reason` says why."""
    return Seen(reason, Verdict.UNCHECKED)


@dataclass(frozen=True)
class Check:
    """One assumption and how it is looked at.

    Args:
        name: short and stable; the key of the recorded column.
        assumed: the assumption, as a sentence.
        cares: the modules that rest on it.
        look: looks; may take `seconds` at most.
        seconds: after which the check is given up.
        quiet: measures times, so nothing else may run beside it.
    """

    name: str
    assumed: str
    cares: str
    look: Callable[[Session], Seen]
    seconds: float
    quiet: bool


def assumption(
    checks: list[Check], name: str, assumed: str, *, cares: str, seconds: float = 60.0, quiet: bool = False
) -> Callable[[Callable[[Session], Seen]], Callable[[Session], Seen]]:
    """Add the decorated function to `checks` as the way to look at an assumption; arguments as of `Check`."""

    def add(look: Callable[[Session], Seen]) -> Callable[[Session], Seen]:
        checks.append(Check(name, assumed, cares, look, seconds, quiet))
        return look

    return add


@dataclass(frozen=True)
class Finding:
    """A check with its outcome."""

    check: Check
    seen: Seen
    local: str = ""
    """What the local Modal server does, as recorded."""

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "name": self.check.name,
            "assumed": self.check.assumed,
            "seen": self.seen.text,
            "verdict": self.seen.verdict.value,
            "meaning": self.seen.meaning,
            "cares": self.check.cares,
            "local_modal": self.local,
            "data": dict(self.seen.data),
        }

    def as_text(self) -> str:
        """As a person reads it: one line for the verdict, and one each for what is behind it."""
        lines = [f"{_MARKS[self.seen.verdict]} {self.check.name}: {self.seen.verdict.value}"]
        rows = [("assumed", self.check.assumed), ("seen", self.seen.text)]
        if self.local:
            rows.append(("local_modal", self.local))
        if self.seen.verdict is Verdict.DIFFERENT:
            rows.append(("means", f"{self.seen.meaning} [{self.check.cares}]"))
        for name, text in rows:
            lines += textwrap.wrap(
                text, 110, initial_indent=f"    {name + ':':<13}", subsequent_indent=" " * 17
            )
        return "\n".join(lines)


_MARKS = {Verdict.AS_ASSUMED: "=", Verdict.DIFFERENT: "!", Verdict.UNCHECKED: "?"}


def read_recorded() -> dict[str, str]:
    """What the local Modal server does, by the name of the check; empty before the first recording."""
    if not RECORDED.exists():
        return {}
    recorded: dict[str, str] = json.loads(RECORDED.read_text())
    return recorded


def record(findings: Iterable[Finding]) -> None:
    """Keep these findings as what the local Modal server does."""
    texts = {each.check.name: f"{each.seen.text} ({each.seen.verdict.value})" for each in findings}
    RECORDED.write_text(json.dumps(texts, indent=2, sort_keys=True) + "\n")
