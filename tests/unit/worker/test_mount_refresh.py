"""What does a container that is used again do when its mount can't be brought up to date?"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_modal.errors import UnreachableError
from airflow_provider_modal.worker import dispatch


def _run(monkeypatch: pytest.MonkeyPatch, reload: Any) -> dispatch._Run:
    monkeypatch.setattr(dispatch, "_former_inputs", 1)
    monkeypatch.setattr(dispatch, "RELOAD_DEADLINE", 0.2)
    run = object.__new__(dispatch._Run)
    run.spoiled = False
    run.container = SimpleNamespace(reload=reload)  # type: ignore[assignment]
    return run


def test_a_reload_that_is_refused_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise RuntimeError("there are open files")

    run = _run(monkeypatch, refused)
    run._refresh_mount()
    assert not run.spoiled and "there are open files" in caplog.text


def test_a_reload_that_goes_on_keeps_tasks_out_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    run = _run(monkeypatch, over.wait)
    with pytest.raises(UnreachableError, match="reload the Volume's mount: no answer"):
        run._refresh_mount()
    assert run.spoiled
    over.set()
