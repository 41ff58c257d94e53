"""How does a value become one file, and a file the same value again?

Through a local file and in pieces, so that a value of a gigabyte costs its own memory and that of one copy:
the JSON text, which Python makes at once. What is read is checked before anything of it is used.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cloudpickle

from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume.digests import sha256_of
from airflow_provider_modal.xcom.reference import Compression, Encoding, Reference

COMPRESSED_FROM = 4096
"""Bytes from which a value is compressed."""
LEVEL = 1
"""Of compression: most of the gain at a fraction of the time."""
PIECE = 1024 * 1024


class DamagedXComError(ModalflowError):
    """A file is not what was stored; the message names it."""


@dataclass(frozen=True)
class Packed:
    """A value as a local file."""

    local: Path
    bytes: int
    stored_bytes: int
    sha256: str
    encoding: Encoding
    compression: Compression

    @property
    def suffix(self) -> str:
        """What its name ends with, for people who look at the Volume."""
        return (".json" if self.encoding == "json" else ".pkl") + (
            ".gz" if self.compression == "gzip" else ""
        )


@contextmanager
def json_file(text: str) -> Generator[Packed, None, None]:
    """Write JSON text, which is ASCII, into a file that lives for the block."""
    pieces = (text[at : at + PIECE].encode() for at in range(0, len(text), PIECE))
    with _file("json", len(text) >= COMPRESSED_FROM, lambda target: target.writelines(pieces)) as packed:
        yield packed


@contextmanager
def pickle_file(value: Any) -> Generator[Packed, None, None]:
    """Write a value by cloudpickle into a file that lives for the block.

    :raises Exception: whatever the value raises that can't be pickled.
    """
    with _file("pickle", True, lambda target: cloudpickle.dump(value, target)) as packed:
        yield packed


@contextmanager
def checked_copy(reference: Reference, pieces: Iterable[bytes]) -> Generator[Path, None, None]:
    """Write what was read into a file that lives for the block, if it is what was stored.

    :raises DamagedXComError: it is not.
    """
    with tempfile.NamedTemporaryFile(prefix="xcom-") as file:
        sha, size = hashlib.sha256(), 0
        for piece in pieces:
            sha.update(piece)
            size += len(piece)
            file.write(piece)
        if size != reference.stored_bytes or sha.hexdigest() != reference.sha256:
            raise DamagedXComError(
                f"{reference.path} on the Volume is damaged: it has {size:,} bytes, of "
                f"{reference.stored_bytes:,} that were stored, or others than those; clear the task that "
                "returned it"
            )
        file.flush()
        yield Path(file.name)


def load(reference: Reference, local: Path) -> Any:
    """Return what a checked copy holds: parsed JSON, or the unpickled value."""
    with gzip.open(local, "rb") if reference.compression == "gzip" else local.open("rb") as file:
        return json.load(file) if reference.encoding == "json" else pickle.load(file)


@contextmanager
def _file(
    encoding: Encoding, compress: bool, write: Callable[[IO[bytes]], object]
) -> Generator[Packed, None, None]:
    with tempfile.NamedTemporaryFile(prefix="xcom-") as raw:
        if compress:
            # Without name and time: equal values make equal files.
            with gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed:
                write(packed)  # type: ignore[arg-type]
                length = packed.tell()
        else:
            write(raw)
            length = raw.tell()
        raw.flush()
        local = Path(raw.name)
        stored = local.stat().st_size
        yield Packed(local, length, stored, sha256_of(local), encoding, "gzip" if compress else "none")
