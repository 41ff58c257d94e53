"""What the commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

PROGRAM = "python -m local_modal"
STATE_DIR_VARIABLE, DEFAULT_STATE_DIR = "LOCAL_MODAL_STATE_DIR", ".modal-state"


class Refused(Exception):
    """A failure that the user can understand and mend."""


class Raw(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions."""


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """The option by which a server is known."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(os.environ.get(STATE_DIR_VARIABLE, DEFAULT_STATE_DIR)),
        metavar="DIR",
        help=f"where the server keeps everything (default: {STATE_DIR_VARIABLE}, or {DEFAULT_STATE_DIR})",
    )
