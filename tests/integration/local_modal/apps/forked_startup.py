"""Mounted as sitecustomize.py: what an interpreter imports when it starts."""

from __future__ import annotations

import builtins

builtins.CUSTOMIZED = True  # type: ignore[attr-defined]
