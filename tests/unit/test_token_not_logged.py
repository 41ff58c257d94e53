"""Modal's token travels as a header; what logs headers is kept quiet."""

from __future__ import annotations

import subprocess
import sys

SENDS = """
import logging
logging.basicConfig(level=logging.DEBUG)
{before}
import hpack
hpack.Encoder().encode([("x-modal-token-secret", "as-secret")])
"""


def _logged(before: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SENDS.format(before=before)], capture_output=True, text=True, check=True
    )
    return done.stderr


def test_a_debugging_airflow_does_not_log_the_token() -> None:
    assert "as-secret" in _logged("")
    assert "as-secret" not in _logged("import airflow_provider_modal")


def test_who_sets_the_level_has_it() -> None:
    asked = "logging.getLogger('hpack').setLevel(logging.DEBUG); import airflow_provider_modal"
    assert "as-secret" in _logged(asked)
