"""Where in Modal's dashboard is the function call that ran a task instance?

The link is offered for every operator, because a task's operator doesn't tell who runs it; it leads somewhere
only where ``ModalExecutor`` did. Nothing is asked of Modal for it.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_modal.dashboard import call_url
from airflow_provider_modal.wire import external_executor_id, is_call_id, parse_external_executor_id

try:
    from airflow.sdk import BaseOperatorLink
except ImportError:  # Airflow 2
    from airflow.models.baseoperatorlink import BaseOperatorLink

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.models.taskinstancekey import TaskInstanceKey
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

_DISPATCH = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class FunctionCallLink(BaseOperatorLink):
    """A button at the task instance that leads to its function call."""

    name = "Modal function call"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the address; empty, which shows no button, for what ``ModalExecutor`` did not run.

        :param operator: not needed.
        :param ti_key: of any try.
        """
        try:
            return dashboard_url(_external_executor_id(ti_key)) or ""
        except Exception:
            # Airflow answers for all links of a task together: without this, none of them would be shown.
            log.exception("the function call of %s is not known", ti_key)
            return ""


def dashboard_url(external_executor_id: str | None) -> str | None:
    """Return where Modal's dashboard shows a dispatch's function call; None if the id is not one of ours."""
    dispatch, call_id = parse_external_executor_id(external_executor_id)
    if dispatch is None or call_id is None:
        return None
    return call_url(call_id) if _DISPATCH.fullmatch(dispatch) and is_call_id(call_id) else None


def _external_executor_id(key: TaskInstanceKey) -> str | None:
    """Return a try's external executor id: of the task instance, or of its history for a former try.

    Of a task that ended at once, Airflow has the dispatch only: of an executor's events in one scheduler loop
    it sees each task instance's last. The function call is in the event log then.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        for model in (TaskInstance, TaskInstanceHistory):
            found = session.execute(
                select(model.external_executor_id, model.queued_dttm).where(
                    model.dag_id == key.dag_id,
                    model.task_id == key.task_id,
                    model.run_id == key.run_id,
                    model.map_index == key.map_index,
                    model.try_number == key.try_number,
                )
            ).first()
            if found is None or not found[0]:
                continue
            external_id, queued_at = found
            if _DISPATCH.fullmatch(external_id):
                return external_executor_id(external_id, _submitted(session, key, queued_at))
            return str(external_id)
    return None


def _submitted(session: Session, key: TaskInstanceKey, since: datetime | None) -> str | None:
    """Return the function call that the executor's events name last.

    :param since: when the try was queued last; former calls of the same try are not wanted.
    """
    from airflow.models.log import Log
    from sqlalchemy import select

    from airflow_provider_modal.executors.task_events import SUBMITTED_EVENT, SUBMITTED_TEXT

    text = session.scalar(
        select(Log.extra)
        .where(
            Log.dag_id == key.dag_id,
            Log.task_id == key.task_id,
            Log.run_id == key.run_id,
            Log.map_index == key.map_index,
            Log.try_number == key.try_number,
            Log.event == SUBMITTED_EVENT,
            *([Log.dttm >= since] if since is not None else []),
        )
        .order_by(Log.dttm.desc())
        .limit(1)
    )
    return text.removeprefix(SUBMITTED_TEXT) if text else None
