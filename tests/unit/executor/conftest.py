from __future__ import annotations

import os
import tempfile

# Before Airflow is imported: it writes its configuration file into its home.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="modalflow-unit-airflow-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
