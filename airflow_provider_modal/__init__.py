"""Apache Airflow without servers, on Modal.

Importing this package imports neither Airflow nor modal: command definitions, the due-check and the
container entry rely on that.
"""

from __future__ import annotations

__version__ = "0.1.0"
