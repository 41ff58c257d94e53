"""Does whoever asks for a scheduler run get one, also when Modal fails in the middle?"""

from __future__ import annotations

import secrets
from typing import Any

import modal
import pytest

from airflow_provider_modal import names, wakeup
from airflow_provider_modal.names import ResourceNames
from local_modal.testing import LocalModal
from tests.support.modal_env import using
from tests.support.scheduler_app import scheduler_app


def test_a_failed_wake_up_can_be_repeated(local_modal: LocalModal) -> None:
    resources = ResourceNames(f"wake-{secrets.token_hex(4)}")
    with using(local_modal):
        state = modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        with pytest.raises(modal.exception.NotFoundError):
            wakeup.request_run(resources, "before the App is deployed")
        assert state.get(names.WAKE_KEY) is None
        with scheduler_app(resources.env) as app:
            assert wakeup.request_run(resources, "again")
            assert app.started() == "again"
            assert not wakeup.request_run(resources, "while that wish waits to be taken")


def test_a_failed_tick_leaves_the_wish_of_another_waker(local_modal: LocalModal) -> None:
    resources = ResourceNames(f"wake-{secrets.token_hex(4)}")
    with using(local_modal):
        state = modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
        state.put(names.WAKE_KEY, {"reason": "another"})
        with pytest.raises(modal.exception.NotFoundError):
            wakeup.request_run(resources, "the schedule", force=True)
        assert state[names.WAKE_KEY]["reason"] == "another"


class _LostAnswer:
    """A Dict on which the SDK has repeated each put, because the first answer never arrived."""

    def __init__(self, state: modal.Dict) -> None:
        self._state = state
        self.get = state.get

    def put(self, key: str, value: dict[str, Any], *, skip_if_exists: bool) -> bool:
        self._state.put(key, value, skip_if_exists=skip_if_exists)
        return self._state.put(key, value, skip_if_exists=skip_if_exists)


def test_a_put_whose_answer_was_lost_still_wakes(
    local_modal: LocalModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = ResourceNames(f"wake-{secrets.token_hex(4)}")
    with using(local_modal), scheduler_app(resources.env) as app:
        with monkeypatch.context() as patch:
            patch.setattr(modal.Dict, "from_name", lambda _name: _LostAnswer(app.state))
            assert wakeup.request_run(resources, "first")
        assert app.started() == app.wish == "first"
