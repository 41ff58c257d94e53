"""Apache Airflow without servers, on Modal.

Importing this package imports neither Airflow nor modal: command definitions, the due-check and the
container entry rely on that.
"""

from __future__ import annotations

import logging

__version__ = "0.1.0"

# At DEBUG the HTTP/2 library below the Modal SDK logs every header, Modal's token secret among them, and
# Airflow's logging_level = DEBUG would bring that into the scheduler's log. A level set on this logger stays.
if logging.getLogger("hpack").level == logging.NOTSET:
    logging.getLogger("hpack").setLevel(logging.INFO)
