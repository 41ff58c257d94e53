"""Is a Fernet key shown once, and is it said what it is worth?"""

from __future__ import annotations

import pytest

from airflow_provider_modal.cli import environment
from airflow_provider_modal.provision import CreateSummary


@pytest.mark.parametrize(("status", "doubtful"), [("created", False), ("failed", True), ("started", True)])
def test_a_key_is_shown_whatever_became_of_its_secret(
    status: str, doubtful: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = CreateSummary("dev", steps={"secrets": status})
    summary.note_key("the-key")
    environment._show_fernet_key(summary)
    told = capsys.readouterr().err
    assert "the-key" in told
    assert ("if the next create shows another one" in told) == doubtful
    environment._show_fernet_key(summary)
    assert capsys.readouterr().err == ""
