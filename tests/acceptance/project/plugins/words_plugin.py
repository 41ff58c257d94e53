"""Plugins for DAGs in Airflow: a macro and a timetable."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin
from airflow.timetables.simple import NullTimetable


class NeverByItself(NullTimetable):
    """Only ever triggered."""


def word() -> str:
    """Return this version's word."""
    return "A"


class WordsPlugin(AirflowPlugin):
    """Registers them."""

    name = "words"
    macros = [word]
    timetables = [NeverByItself]
