from __future__ import annotations

from pathlib import Path

from airflow_provider_modal.venvs import installer
from airflow_provider_modal.venvs.redaction import redacted

TOKEN = "tok%2Fen-9f8e7d"


def test_no_credential_of_an_index_is_shown() -> None:
    environ = {
        "UV_INDEX_URL": f"https://__token__:{TOKEN}@index.example/wheels",
        "UV_INDEX": f"team=https://reader:pass-word@team.example/wheels/?key={TOKEN}1 https://plain.example",
        "UV_INDEX_TEAM_PASSWORD": "bare-secret",
        "PIP_EXTRA_INDEX_URL": "https://key-only@extra.example",
        "OTHER": "https://u:not-an-index@host",
    }
    said = (
        f"error: failed to fetch https://__token__:{TOKEN}@index.example/wheels/a/?x=y\n"
        f"password tok/en-9f8e7d and {TOKEN}1, reader, pass-word, bare-secret, key-only\n"
        "https://someone:else@third.example/p and a @ git+https://x@y/z, me@example.com\n"
        "https://plain.example/a-1.0.whl"
    )
    shown = redacted(said, environ)
    for secret in (TOKEN, "tok/en", "__token__", "reader", "pass-word", "bare-secret", "key-only", "someone"):
        assert secret not in shown, shown
    for kept in ("failed to fetch https://***@index.example/wheels/a/?***", "me@example.com", "a-1.0.whl"):
        assert kept in shown, shown


def test_the_installer_gets_indexes_but_nothing_of_airflow(tmp_path: Path) -> None:
    environ = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://u:p@host/db",
        "AIRFLOW_CONN_X": "secret",
        "MODAL_TASK_ID": "ta-1",
        "MODALFLOW_ENV": "prod",
        "PYTHONPATH": "/x",
        "PIP_INDEX_URL": "https://pip.example",
        "PIP_EXTRA_INDEX_URL": "https://extra.example",
        "HTTPS_PROXY": "http://proxy",
    }
    found = installer.environment(environ, tmp_path)
    assert not [name for name in found if name.startswith(("AIRFLOW", "MODAL", "PYTHONPATH"))]
    assert found["UV_DEFAULT_INDEX"] == "https://pip.example" and found["HTTPS_PROXY"] == "http://proxy"
    assert found["UV_EXTRA_INDEX_URL"] == "https://extra.example" and found["UV_CACHE_DIR"] == str(tmp_path)
    for theirs in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        chosen = installer.environment({**environ, theirs: "https://uv.example"}, tmp_path)
        assert chosen[theirs] == "https://uv.example"
        assert chosen.get("UV_DEFAULT_INDEX") in (None, "https://uv.example")
