"""The command line: ``modalflow`` and, the same commands, ``airflow modalflow``."""
