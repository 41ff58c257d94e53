"""This version's word."""

from __future__ import annotations

WORD = "A"
