"""Does a change through Airflow's app wake the scheduler, once it is committed, and nothing else do so?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_provider_modal.ui.waking import WakesScheduler


def _request(app: Any, method: str, path: str, root: str = "") -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
    asyncio.run(app(scope, receive, send))
    return sent


def _wrapped(status: int = 200) -> tuple[WakesScheduler, list[str]]:
    events: list[str] = []

    async def airflow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        events.append("committed")

    return WakesScheduler(airflow, events.append), events


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v2/dags/x/dagRuns"),
        ("POST", "/api/v2/dags/x/clearTaskInstances"),
        ("PATCH", "/api/v2/dags/x"),
        ("DELETE", "/ui/something"),
    ],
)
@pytest.mark.parametrize("root", ["", "/airflow"])
def test_a_change_wakes_once_it_is_committed(method: str, path: str, root: str) -> None:
    app, events = _wrapped()
    sent = _request(app, method, path, root)
    assert events == ["committed", f"{method} {root}{path}"]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v2/dags", 200),
        ("POST", "/auth/token", 201),
        ("POST", "/api/v2/dags/~/dagRuns/list", 200),
        ("POST", "/api/v2/dags/x/dagRuns", 409),
        ("PATCH", "/api/v2/dags/x", 500),
    ],
)
def test_what_changes_nothing_wakes_nobody(method: str, path: str, status: int) -> None:
    app, events = _wrapped(status)
    _request(app, method, path)
    assert events == ["committed"]


def test_a_client_that_goes_away_loses_no_wake_up() -> None:
    events: list[str] = []

    async def gone(scope: Any, receive: Any, send: Any) -> None:
        raise ConnectionResetError("the client is gone")

    with pytest.raises(ConnectionResetError):
        _request(WakesScheduler(gone, events.append), "POST", "/api/v2/dags/x/dagRuns")
    assert events == ["POST /api/v2/dags/x/dagRuns"]


def test_a_wake_up_that_fails_is_not_the_client_s_concern(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = _wrapped()
    app._wake = lambda reason: 1 / 0
    assert _request(app, "POST", "/api/v2/dags/x/dagRuns")[0]["status"] == 200
    assert "ZeroDivisionError" in caplog.text


def test_websockets_and_the_life_of_the_app_pass() -> None:
    seen: list[str] = []

    async def airflow(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for kind in ("websocket", "lifespan"):
        asyncio.run(WakesScheduler(airflow, seen.append)({"type": kind}, None, None))  # type: ignore[arg-type]
    assert seen == ["websocket", "lifespan"]
