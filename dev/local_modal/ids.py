"""Object ids in Modal's format: a two-letter prefix that the SDK checks, a dash, 22 letters and digits."""

from __future__ import annotations

import hashlib
import secrets

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 22

APP, FUNCTION, CLASS, IMAGE, MOUNT, SECRET = "ap", "fu", "cs", "im", "mo", "st"
VOLUME, DICT, QUEUE, ENVIRONMENT = "vo", "di", "qu", "en"
CALL, INPUT, TASK, BLOB, DEFINITION = "fc", "in", "ta", "bl", "de"


def new_id(prefix: str) -> str:
    """A fresh random id such as `fc-01J...`; collisions are not a practical concern (130 bits)."""
    return f"{prefix}-{_characters(secrets.randbits(256))}"


def derived_id(prefix: str, *parts: str | bytes) -> str:
    """An id that is the same for the same parts, for objects that a repeated request must find again."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)  # lengths keep ("ab","c") and ("a","bc") apart
    return f"{prefix}-{_characters(int.from_bytes(digest.digest(), 'big'))}"


def _characters(number: int) -> str:
    characters = []
    for _ in range(LENGTH):
        number, remainder = divmod(number, len(ALPHABET))
        characters.append(ALPHABET[remainder])
    return "".join(characters)
