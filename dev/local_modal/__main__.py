"""`python -m local_modal`: serve, run, env, top, status, fault."""

from __future__ import annotations

import sys

from local_modal.cli import main

sys.exit(main())
