"""Is Modal there, and is the environment?

The SDK tries for about a minute to reach a server that is away. Commands ask here first, tell it within
seconds, and give up well before that.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from airflow_provider_modal.cli.output import note
from airflow_provider_modal.errors import ConfigError, ModalflowError, NotFoundError, UnreachableError

if TYPE_CHECKING:
    from airflow_provider_modal.control.client import ControlClient
    from airflow_provider_modal.deployment import Manifest
    from airflow_provider_modal.names import ResourceNames
    from airflow_provider_modal.volume.files import VolumeFiles

NOTE_SECONDS = 3.5
"""With the imports before it, a person is told within five seconds that Modal does not answer yet."""
PROBE_SECONDS = 15.0
"""A VPN, a proxy or a loaded machine may take more than a few seconds for a first connection."""


@dataclass(frozen=True)
class Access:
    """An environment as a command reaches it."""

    resources: ResourceNames

    @cached_property
    def files(self) -> VolumeFiles:
        """The files of its Volume."""
        from airflow_provider_modal.volume.files import VolumeFiles

        return VolumeFiles.open(self.resources)

    @cached_property
    def control(self) -> ControlClient:
        """The operations that run beside its database."""
        from airflow_provider_modal.control.client import ControlClient

        return ControlClient(self.resources)

    @cached_property
    def manifest(self) -> Manifest:
        """What is deployed there.

        :raises NotFoundError: the environment does not exist, or its creation did not come to its end.
        """
        from airflow_provider_modal import deployment

        env = self.resources.env
        try:
            return deployment.read(self.files)
        except NotFoundError:
            raise NotFoundError(
                f"environment {env} is not deployed, or its creation did not come to its end; create it: "
                f"modalflow create --env {env} --config config.yaml"
            ) from None


def connect(resources: ResourceNames) -> Access:
    """Return access to an environment, once Modal has answered (see :func:`probe`)."""
    probe()
    return Access(resources)


def probe(timeout: float = PROBE_SECONDS) -> None:
    """Make sure that Modal answers and accepts the token.

    :param timeout: seconds.
    :raises UnreachableError: it doesn't answer in time.
    :raises ConfigError: there is no token, or Modal refuses it.
    """
    import modal
    from modal import exception
    from modal.config import config

    from airflow_provider_modal.modal_errors import translated

    outcome: list[BaseException | None] = []

    def hello() -> None:
        try:
            modal.Client.from_env().hello()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    # A blocking call of the SDK tries to connect for a whole minute; an abandoned daemon thread doesn't keep
    # the process.
    thread = threading.Thread(target=hello, name="modal-probe", daemon=True)
    thread.start()
    thread.join(min(NOTE_SECONDS, timeout))
    if thread.is_alive() and timeout > NOTE_SECONDS:
        note(f"Modal has not answered so far; waiting for {timeout - NOTE_SECONDS:g} s more ...")
        thread.join(timeout - NOTE_SECONDS)
    where = f"Modal does not answer at {config['server_url']}"
    if not outcome:
        raise UnreachableError(
            f"{where} within {timeout:g} s: check the network, MODAL_SERVER_URL and https://status.modal.com"
        )
    if outcome[0] is None:
        return
    try:
        with translated("reach Modal"):
            raise outcome[0]
    except exception.Error as error:
        raise UnreachableError(f"{where} as Modal would: {error}; check MODAL_SERVER_URL") from error


def explained(error: Exception) -> ModalflowError | None:
    """Return what an error of the Modal SDK means to a user, None if it isn't one."""
    if "modal" not in sys.modules:
        return None
    from modal import exception

    if not isinstance(error, exception.Error):
        return None
    if isinstance(error, exception.NotFoundError):
        return NotFoundError(f"Modal does not know it: {error}")
    from airflow_provider_modal.modal_errors import translated

    try:
        with translated("do this"):
            raise error
    except (ConfigError, UnreachableError) as known:
        return known
    except exception.Error:
        return ModalflowError(f"Modal refused: {error}")
