"""How does the command line ask the environment to do something with its database?

It calls the deployed function ``control``, because the database may be reachable from Modal only and its URL
stays in the environment's Secret. Operations are idempotent, so a call that was cut short can be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from airflow_provider_modal import names
from airflow_provider_modal.errors import ERRORS_BY_KIND, ModalflowError, NotFoundError, UnreachableError
from airflow_provider_modal.modal_errors import translated

SUBMIT_SECONDS = 15.0
ANSWER_SECONDS = 300.0
"""Covers the start of a container whose image Modal has not cached yet."""


class ControlClient:
    """Operations of one environment.

    :param resources: the environment's names.
    :param timeout: seconds to wait for an answer.
    """

    def __init__(self, resources: names.ResourceNames, *, timeout: float = ANSWER_SECONDS) -> None:
        self._resources = resources
        self._timeout = timeout

    def call(self, op: str, /, **args: Any) -> Any:
        """Run an operation in the environment and return its result.

        :raises NotFoundError: the environment is not deployed, or what was asked for does not exist in it.
        :raises UnreachableError: Modal, the function or the database does not answer.
        :raises ModalflowError: the operation failed; the class is the one that was raised there.
        """
        return self._result(op, asyncio.run(self._call(op, args)))

    async def _call(self, op: str, args: Mapping[str, Any]) -> Any:
        import modal
        from modal import exception

        app = self._resources.app
        function = modal.Function.from_name(app, names.CONTROL)
        what = f"run operation {op} in environment {self._resources.env}"
        with translated(what):
            try:
                call = await asyncio.wait_for(function.spawn.aio(op, dict(args)), SUBMIT_SECONDS)
            except exception.NotFoundError as error:
                raise NotFoundError(
                    f"environment {self._resources.env} is not deployed; create it: modalflow create "
                    f"--env {self._resources.env} --config config.yaml"
                ) from error
        ends = time.monotonic() + self._timeout
        try:
            with translated(what):
                # The SDK polls until its timeout; the outer limit is for a Modal that went away meanwhile.
                return await asyncio.wait_for(
                    call.get.aio(timeout=self._timeout), self._timeout + SUBMIT_SECONDS
                )
        except UnreachableError as error:
            if time.monotonic() < ends:
                raise
            raise UnreachableError(
                f"can't {what}: no answer within {self._timeout:g} s; what it did so far is in the log: "
                f"modal app logs {app}"
            ) from error
        except ModalflowError:
            raise
        except Exception as error:
            # Whatever the function raised, or the reason for which its container could not start.
            raise ModalflowError(
                f"can't {what}: function {names.CONTROL} failed ({type(error).__name__}: {error}); see: "
                f"modal app logs {app}"
            ) from error

    @staticmethod
    def _result(op: str, answer: Any) -> Any:
        if not isinstance(answer, Mapping) or "ok" not in answer:
            raise ModalflowError(
                f"operation {op} gave an answer of another release; redeploy: modalflow create"
            )
        if answer["ok"]:
            return answer.get("result")
        failure = answer["error"]
        raise ERRORS_BY_KIND.get(failure["kind"], ModalflowError)(failure["message"])
