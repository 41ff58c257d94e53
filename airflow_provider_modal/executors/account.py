"""With whose token does the executor talk to Modal, and in which of Modal's environments?

By default with what the SDK finds by itself, as everywhere in this package. ``[modal] connection_id`` names
an Airflow connection instead, of the type that apache-airflow-providers-modal has: login and password are a
token's id and secret, and the extra's ``environment`` names a Modal environment. That provider need not be
installed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from airflow_provider_modal.errors import ConfigError, UnreachableError
from airflow_provider_modal.executors.options import SECTION, Options

if TYPE_CHECKING:
    import modal

CONNECTION_TYPE = "modal"


class Account:
    """The SDK's client of one executor, made when it is first needed. Safe to share between threads.

    :param connection_id: Airflow connection with the token; None for what the SDK finds by itself.
    :param team: whose executor it is; Airflow's secrets may be a team's.
    """

    def __init__(self, connection_id: str | None = None, team: str | None = None) -> None:
        self._connection_id = connection_id
        self._team = team
        self._lock = threading.Lock()
        self._read = connection_id is None
        self._client: modal.Client | None = None
        self._environment: str | None = None

    @classmethod
    def of(cls, options: Options, team: str | None = None) -> Account:
        """Return the account that an executor's options name."""
        return cls(options.connection_id, team)

    @property
    def ambient(self) -> bool:
        """Whether all is left to the SDK."""
        return self._connection_id is None

    def connect(self) -> None:
        """Read the connection and make its client, once; what failed is tried again by the next caller.

        Blocks for as long as Airflow's secrets backends and Modal take. A token that is changed later is used
        by the next scheduler.

        :raises UnreachableError: there is no such connection at the moment.
        :raises ConfigError: it is not one for Modal.
        """
        with self._lock:
            if self._read:
                return
            token, environment = self._credentials()
            if token is not None:
                import modal

                self._client = modal.Client.from_credentials(*token)
            self._environment = environment
            self._read = True

    @property
    def client(self) -> dict[str, Any]:
        """The argument ``client`` for the SDK's functions, after ``connect``."""
        return {} if self._client is None else {"client": self._client}

    @property
    def place(self) -> dict[str, Any]:
        """The arguments for the SDK's look-ups by name, after ``connect``: the client, and where to look."""
        return {**self.client, **({"environment_name": self._environment} if self._environment else {})}

    def _credentials(self) -> tuple[tuple[str, str] | None, str | None]:
        """Return the connection's token, and the Modal environment that it names."""
        connection = self._connection()
        what = f"connection {self._connection_id!r}, which [{SECTION}] connection_id names,"
        if connection.conn_type != CONNECTION_TYPE:
            raise ConfigError(
                f"{what} is of type {connection.conn_type!r}; it must be of type {CONNECTION_TYPE!r}"
            )
        login, password = connection.login or None, connection.password or None
        if (login is None) != (password is None):
            missing = "login (the token's id)" if login is None else "password (the token's secret)"
            # The SDK's own token instead would hide that, and may belong to somebody else.
            raise ConfigError(f"{what} has no {missing}; set it, or neither for the SDK's own token")
        environment = connection.extra_dejson.get("environment") or None
        if environment is not None and not isinstance(environment, str):
            raise ConfigError(f"{what} must have the name of a Modal environment as its extra's environment")
        return (login, password) if login and password else None, environment

    def _connection(self) -> Any:
        from airflow.exceptions import AirflowNotFoundException
        from airflow.models.connection import Connection

        of_team = {"team_name": self._team} if self._team else {}
        assert self._connection_id
        try:
            return Connection.get_connection_from_secrets(self._connection_id, **of_team)
        except AirflowNotFoundException:
            # Airflow says so as well when the database or a secrets backend is away.
            raise UnreachableError(
                f"Airflow has no connection {self._connection_id!r}, which [{SECTION}] connection_id names, "
                "or can't read it at the moment; add it, or look whether its secrets backend answers"
            ) from None
