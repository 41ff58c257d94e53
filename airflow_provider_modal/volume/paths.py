"""How do names from outside become paths that stay where they belong?

DAG ids, run ids, task ids and XCom keys may hold any text. ``safe_segment`` turns one into exactly one path
segment, differently for different texts; ``safe_path`` joins several. Paths that come whole (a file of a DAG
version, a log path that Airflow rendered) are checked by ``inner_path`` and ``below`` instead.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

SEGMENT_BYTES = 200
"""Longest segment we make. Linux allows 255 bytes; the rest is for suffixes such as attempt numbers."""

_EMPTY = "%"
SHORTENED = "%~"
"""Part of segments that can't be read back: a digest of the text follows its beginning."""
# Separators, the escape character itself, control characters, and what a shell or the SDK reads as a pattern:
# Volume.listdir refuses paths that end in "*".
_UNSAFE = re.compile(r"[/\\%*?\x00-\x1f\x7f\ud800-\udfff]")


def safe_segment(text: str) -> str:
    """Return ``text`` as one path segment: the same text where that is possible, escaped where not.

    Different texts give different segments, none of which is ``.``, ``..``, hidden or empty. Texts that would
    be longer than ``SEGMENT_BYTES`` keep their beginning and get a digest; only those can't be read back.
    """
    if not text:
        return _EMPTY
    segment = _UNSAFE.sub(lambda match: _escaped(match[0]), text)
    if segment.startswith("."):
        segment = "%2E" + segment[1:]
    encoded = segment.encode()
    if len(encoded) <= SEGMENT_BYTES:
        return segment
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    suffix = f"{SHORTENED}{digest}"
    head = encoded[: SEGMENT_BYTES - len(suffix)].decode("utf-8", "ignore")
    # Not half an escape sequence in front of the digest.
    return re.sub(r"%[0-9A-F]?$", "", head) + suffix


def segment_text(segment: str) -> str:
    """Return the text that ``safe_segment`` made ``segment`` of; a shortened one comes back as it is."""
    if segment == _EMPTY:
        return ""
    if SHORTENED in segment:
        return segment
    return unquote_to_bytes(segment).decode("utf-8", "surrogatepass")


def safe_path(*segments: str) -> str:
    """Return the relative path whose segments are these texts, each made safe."""
    return "/".join(safe_segment(segment) for segment in segments)


def inner_path(path: str) -> str:
    """Return ``path`` if it is a plain relative path with ``/`` as separator.

    :raises ValueError: it is empty, absolute, or has an empty segment, ``.``, ``..`` or a NUL character.
    """
    if "\0" in path or any(segment in ("", ".", "..") for segment in path.split("/")):
        raise ValueError(f"path {path!r} does not stay below its folder")
    return path


def below(root: Path, path: str) -> Path:
    """Return ``root / path``.

    :raises ValueError: ``path`` would leave ``root``.
    """
    return root / inner_path(path)


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
