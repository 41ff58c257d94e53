"""What does the environment look like that tasks are sent to: its names, and its worker profiles?

In a container of the environment the answer is baked into it. Elsewhere ``[modal] environment`` names the
environment and its deployment manifest, read in the background, has the rest.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Mapping
from dataclasses import replace

from airflow_provider_modal import __version__, airflow_settings, deployment, names
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.errors import ConfigError, ModalflowError, UnreachableError
from airflow_provider_modal.executors.account import Account
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.options import SECTION, Options
from airflow_provider_modal.executors.task_options import TaskOptions
from airflow_provider_modal.version_compat import airflow_version
from airflow_provider_modal.wire import WIRE_VERSION

READ_AGAIN = 30.0
"""Seconds after which a profile that the manifest does not have is looked for there once more."""


class Deployed:
    """An environment and its worker profiles.

    The profiles are replaced as a whole, so one thread may read them while another learns them.
    """

    def __init__(
        self,
        resources: names.ResourceNames,
        config: EnvironmentConfig | None = None,
        account: Account | None = None,
    ) -> None:
        self.resources = resources
        self.account = account or Account()
        self.problem: str | None = None
        """Why tasks can't be sent there, for the user; None while the manifest is only not read yet."""
        self._timeouts: Mapping[str, float] | None = None
        self._profiles: Mapping[str, deployment.DeployedProfile] = {}
        self._read_at: float | None = None
        """When the manifest was read or refused, by the monotonic clock; None if it never has to be."""
        if config is not None:
            self._learn(config, deployment.worker_profiles(config, resources))

    @classmethod
    def find(
        cls, options: Options, environ: Mapping[str, str] = os.environ, team: str | None = None
    ) -> Deployed:
        """Return the environment of this process; makes no call.

        :param team: whose options these are, for the message.
        :raises ConfigError: no environment is named, or its name is not allowed.
        """
        if not options.environment:
            whose = f" for team {team!r}" if team else ""
            raise ConfigError(
                f"[{SECTION}] environment is not set{whose}; set it to the name that was given to modalflow "
                "create --env NAME"
            )
        resources = names.ResourceNames(options.environment)
        baked_in = environ.get(airflow_settings.ENV_NAME, options.environment)
        account = Account.of(options, team)
        if airflow_settings.SETTINGS not in environ or baked_in != options.environment:
            return cls(resources, account=account)
        return cls(resources, airflow_settings.deployed_config(environ), account)

    @property
    def known(self) -> bool:
        """Whether the worker profiles are known yet."""
        return self._timeouts is not None

    @property
    def settled(self) -> bool:
        """Whether what is known is no reason to read the manifest again soon, also if it was refused then:
        the next task of an unknown profile is one, after a while."""
        fresh = self._read_at is None or time.monotonic() - self._read_at <= READ_AGAIN
        return self.known and fresh

    def must_read(self, profile: str) -> bool:
        """Whether nothing can be said about a profile before the manifest has been read (again)."""
        if self._timeouts is None:
            return self.problem is None
        return profile not in self._timeouts and not self.settled

    def read_manifest(self) -> None:
        """Learn the worker profiles from the deployment manifest; blocks for as long as Modal takes.

        :raises UnreachableError: Modal did not answer.
        :raises ModalflowError: there is no deployment, or not one that fits this process; ``problem`` says it
            too.
        """
        from airflow_provider_modal.volume.files import VolumeFiles

        try:
            self.account.connect()
            manifest = deployment.read(VolumeFiles.open(self.resources, place=self.account.place))
            self._refuse_misfit(manifest)
            self._learn(EnvironmentConfig.from_settings(manifest.settings), manifest.profiles)
        except UnreachableError:
            raise
        except ModalflowError as error:
            self.problem = str(error)
            self._read_at = time.monotonic()
            raise
        self._read_at = time.monotonic()

    def _refuse_misfit(self, manifest: deployment.Manifest) -> None:
        """Refuse a deployment whose workers would not understand this scheduler, or not its database.

        :raises ModalflowError: it is one.
        """
        compared = {
            "release {} of this package": (manifest.package, __version__),
            "version {} of the wire format": (str(manifest.wire), str(WIRE_VERSION)),
            # Distributors add a local part to the version of the same Airflow.
            "Airflow {}": (manifest.airflow.partition("+")[0], airflow_version().partition("+")[0]),
        }
        misfits = [
            f"{what.format(there)}, while the scheduler has {here}"
            for what, (there, here) in compared.items()
            if there != here
        ]
        if misfits:
            raise ModalflowError(
                f"environment {self.resources.env!r} was deployed with {', and with '.join(misfits)}; "
                f"redeploy: modalflow create --env {self.resources.env}"
            )

    def check(self, profile: str) -> None:
        """Refuse a profile that is not deployed; anything passes while the profiles are not known.

        :raises ConfigError: there is no such profile, or nothing usable is deployed.
        """
        if self._timeouts is None:
            if self.problem is not None:
                raise ConfigError(self.problem)
            return
        if profile in self._timeouts:
            return
        if self.problem is not None:
            # The deployment that may have this profile is one that does not fit.
            raise ConfigError(self.problem)
        close = difflib.get_close_matches(profile, self._timeouts, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(
            f"queue {profile!r} is not a worker profile of environment {self.resources.env!r}{hint} known "
            f"are: {', '.join(sorted(self._timeouts))}. Change the task's queue, or add the profile to the "
            "configuration's workers and run modalflow create"
        )

    def timeout(self, profile: str) -> float:
        """Return how many seconds a task of ``profile`` may run.

        :raises KeyError: the profile is not known; ``check`` says so in words.
        """
        return (self._timeouts or {})[profile]

    def function(self, profile: str, options: TaskOptions) -> tuple[str, FunctionOptions]:
        """Return the name of the function that runs tasks of ``profile``, and what of it a task wants
        otherwise.

        :raises KeyError: the profile is not known; ``check`` says so in words.
        """
        deployed = self._profiles[profile]
        wanted = options.function
        if wanted.secrets:
            # Before the environment's own, whose values win.
            *base, own = deployed.secrets
            wanted = replace(wanted, secrets=(*base, *wanted.secrets, own))
        timeout = deployment.call_timeout(options.timeout or 0)
        if timeout > deployed.timeout:
            # Only then: other containers than the profile's start cold.
            wanted = replace(wanted, timeout=timeout)
        return deployed.function, wanted

    def _learn(self, config: EnvironmentConfig, profiles: Mapping[str, deployment.DeployedProfile]) -> None:
        # What says that they are known comes last.
        self._profiles = profiles
        self._timeouts = {profile: config.task_timeout(profile) for profile in config.workers}
        self.problem = None
