"""How does Airflow 3 run what is no task: a callback of a missed deadline, the test of a connection?

Under Airflow's own supervisors, against the execution API in this process; both functions run in a child of
the zygote. Private names of Airflow that this relies on: ``supervise_callback`` with ``client=``, the
``Client`` that ``connection_test_supervisor`` makes, and ``security._jwt_bearer`` of the execution API.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow_provider_modal.container.execution_api import in_process_client
from airflow_provider_modal.worker import af3

log = logging.getLogger(__name__)


def supervise(workload: str) -> dict[str, Any]:
    """Run a callback.

    :param workload: ``ExecuteCallback`` as JSON.
    :return: as of ``af3.supervise``; an exception of the callback is ``failed``, for nobody else tells it.
    """
    from airflow.executors.workloads import ExecuteCallback
    from airflow.sdk.execution_time import callback_supervisor

    item = ExecuteCallback.model_validate_json(workload)
    af3.become_supervisor()
    af3.shorten_tail(callback_supervisor.CallbackSubprocess)
    path = item.callback.data.get("path", "")
    try:
        callback_supervisor.supervise_callback(
            id=item.callback.id,
            callback_path=path,
            callback_kwargs=item.callback.data.get("kwargs", {}),
            dag_rel_path=item.dag_rel_path,
            log_path=item.log_path,
            bundle_info=item.bundle_info,
            token="",
            client=in_process_client(af3.LazyTransport()),
            # Since 3.4.
            **af3.accepted(
                callback_supervisor.supervise_callback,
                callback_kwargs_encoding=item.callback.data.get("kwargs_encoding"),
            ),
        )
    except Exception as error:
        log.exception("the callback failed")
        return af3.ended("failed", f"the callback {path} failed: {error}; its log says why")
    return af3.ended("done", None)


def check_connection(workload: str) -> dict[str, Any]:
    """Test a connection; Airflow's database gets the result by the execution API.

    :param workload: ``TestConnection`` as JSON.
    :return: as of ``af3.supervise``; ``failed`` only if there is no result.
    """
    from airflow.executors.workloads import TestConnection
    from airflow.sdk.execution_time import connection_test_supervisor

    item = TestConnection.model_validate_json(workload)
    af3.become_supervisor()
    # It makes its own, which would go to a server.
    connection_test_supervisor.Client = lambda **_: in_process_client(af3.LazyTransport())
    try:
        _let_in(str(item.connection_test_id))
        connection_test_supervisor.supervise_connection_test(
            connection_test_id=item.connection_test_id,
            connection_id=item.connection_id,
            timeout=item.timeout,
            token="",
            server="",
            # Since 3.4.
            **af3.accepted(
                connection_test_supervisor.supervise_connection_test,
                team_name=getattr(item, "team_name", None),
            ),
        )
    except Exception as error:
        log.exception("the connection test has no result")
        return af3.ended("failed", f"the connection could not be tested: {type(error).__name__}: {error}")
    return af3.ended("done", None)


def _let_in(connection_test_id: str) -> None:
    """Let this process's requests pass as those of a connection test's own token.

    Airflow's in-process API takes every caller for a task, and tasks may not ask about connection tests.
    """
    from airflow.api_fastapi.execution_api import security
    from airflow.api_fastapi.execution_api.datamodels.token import TIClaims, TIToken

    token = TIToken(id=connection_test_id, claims=TIClaims(scope="workload"))
    af3.api().app.dependency_overrides[security._jwt_bearer] = lambda: token
