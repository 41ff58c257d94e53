"""XComs whose values are files of the Volume, where they are too large for the database.

reference   what the database holds instead of a value: where it is, how large, of which type
payload     a value as one file: compressed, with length and checksum
place       the file on the Volume, from this container's mount where that has it
af3         VolumeXComBackend, for Airflow 3's ``[core] xcom_backend``
"""

from __future__ import annotations
