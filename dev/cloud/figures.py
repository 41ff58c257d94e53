"""Figures that probes and checks must agree on; `probes` itself names its app when it is imported."""

from __future__ import annotations

PERIOD_SECONDS = 5
LIMIT_SECONDS = 4
ATTEMPTS = 4
"""How often an input is watched to start whose container dies."""
