"""What is the digest of a file, read piece by piece?"""

from __future__ import annotations

import hashlib
from pathlib import Path

_PIECE = 1024 * 1024


def sha256_of(path: Path) -> str:
    """Return the sha256 of a local file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
