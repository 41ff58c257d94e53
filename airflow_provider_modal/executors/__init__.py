"""Airflow's executor on Modal. Importing the package imports neither Airflow nor Modal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_modal.executors.modal_executor import ModalExecutor

__all__ = ["ModalExecutor"]


def __getattr__(name: str) -> Any:
    if name == "ModalExecutor":
        from airflow_provider_modal.executors.modal_executor import ModalExecutor

        return ModalExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
