"""How does Airflow get its DAGs from the environment's Volume?

``VolumeDagBundle`` serves versions of the Volume's ``dags/`` tree from local disk (see
``volume.dag_versions``). In containers of the environment the version is there before Airflow asks: the
scheduler run and the worker materialise it and name it in ``MODALFLOW_DAG_VERSION``, so the bundle makes no
call to Modal. In an Airflow deployment of your own it reads the Volume itself:

    [dag_processor]
    dag_bundle_config_list = [{"name": "modal-volume",
        "classpath": "airflow_provider_modal.bundles.volume.VolumeDagBundle",
        "kwargs": {"environment": "prod"}}]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.dag_processing.bundles import base

from airflow_provider_modal import airflow_settings
from airflow_provider_modal.errors import ConfigError, ModalflowError
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.volume import dag_versions
from airflow_provider_modal.volume.files import VolumeFiles


class VolumeDagBundle(base.BaseDagBundle):
    """The DAG tree of an environment's Volume, by version.

    Several processes and threads may use it at the same time: a version's folder appears complete or not at
    all and never changes afterwards.

    :param environment: name of the environment; by default the ``[modal] environment`` option.
    """

    supports_versioning = True

    def __init__(self, *, environment: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._environment = environment
        # Elsewhere Airflow's own folder, where it removes versions that nobody uses any more.
        self._root = (
            dag_versions.default_root() if airflow_settings.ROLE in os.environ else Path(self.versions_dir)
        )
        self._digest: str | None = self.version

    def initialize(self) -> None:
        """Make the bundle's version, or else the current one, available on local disk.

        :raises ModalflowError: the Volume can't be read or does not hold the version.
        """
        digest = self.version or os.environ.get(dag_versions.HEAD_VARIABLE)
        if digest is None:
            files = self._files()
            digest = dag_versions.head(files) or dag_versions.snapshot(files).digest
        self._use(digest)
        super().initialize()

    def refresh(self) -> None:
        """Move to the latest version of the tree.

        :raises ModalflowError: the bundle was made for one version, or the Volume can't be read.
        """
        if self.version:
            raise ModalflowError(
                f"bundle {self.name} was opened for version {self.version}; it can't move to another"
            )
        self._use(os.environ.get(dag_versions.HEAD_VARIABLE) or dag_versions.snapshot(self._files()).digest)

    def get_current_version(self) -> Any:
        """Return the digest of the version in use, in the form that this Airflow asks for."""
        if self._digest is None:
            return None
        structured = getattr(base, "BundleVersion", None)  # Airflow 3.3+; earlier ones take the text
        return structured(version=self._digest) if structured else self._digest

    @property
    def path(self) -> Path:
        """Return the folder with the version's files; complete once the bundle is initialized."""
        if self._digest is None:
            return self._root / "not-initialized"
        return dag_versions.local_path(self._root, self._digest)

    def _use(self, digest: str) -> None:
        try:
            present = dag_versions.local_path(self._root, digest).is_dir()
        except ValueError as error:
            raise ModalflowError(f"bundle {self.name}: {error}") from None
        if not present:
            dag_versions.materialise(self._files(), digest, self._root)
        self._digest = digest

    def _files(self) -> VolumeFiles:
        environment = self._environment or conf.get("modal", "environment", fallback=None)
        if not environment:
            raise ConfigError(
                f"bundle {self.name} does not know its environment: set [modal] environment, or "
                '"environment" in the bundle\'s kwargs'
            )
        in_container = airflow_settings.ROLE in os.environ
        return VolumeFiles.open(
            ResourceNames(environment), airflow_settings.volume_mount() if in_container else None
        )
