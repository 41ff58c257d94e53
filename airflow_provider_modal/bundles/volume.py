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
from airflow_provider_modal.bundles import dag_modules
from airflow_provider_modal.errors import ConfigError, ModalflowError
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.volume import dag_copies, dag_versions
from airflow_provider_modal.volume.dag_lock import DagTreeLock
from airflow_provider_modal.volume.files import VolumeFiles


class VolumeDagBundle(base.BaseDagBundle):
    """The DAG tree of an environment's Volume, by version.

    Several processes and threads may use it at the same time: a version's folder appears complete or not at
    all and never changes afterwards. Modules in the tree's ``include/`` can be imported by their own names.

    There is no ``view_url``: what an environment's Volume holds has no page that shows one version.

    :param environment: name of the environment; by default the ``[modal] environment`` option.
    """

    supports_versioning = True

    def __init__(self, *, environment: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._environment = environment
        self._in_container = airflow_settings.ROLE in os.environ
        # Elsewhere Airflow's own folder, where it removes versions that nobody uses any more.
        self._root = dag_copies.default_root() if self._in_container else Path(self.versions_dir)
        self._digest: str | None = self.version

    def initialize(self) -> None:
        """Make the bundle's version, or else the current one, available on local disk.

        :raises ModalflowError: the Volume can't be read or does not hold the version.
        """
        digest = self.version or os.environ.get(dag_versions.HEAD_VARIABLE)
        if digest is None:
            digest = dag_versions.head(self._files()) or self._snapshot()
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
        self._use(os.environ.get(dag_versions.HEAD_VARIABLE) or self._snapshot())

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
        return dag_copies.local_path(self._root, self._digest)

    def _use(self, digest: str) -> None:
        try:
            folder = dag_copies.local_path(self._root, digest)
        except ValueError as error:
            raise ModalflowError(f"bundle {self.name}: {error}") from None
        if not folder.is_dir():
            dag_copies.materialise(self._files(), digest, self._root)
        self._digest = digest
        dag_modules.use(folder, bundle=self.name, plugins=self._in_container)

    def _snapshot(self) -> str:
        return dag_versions.snapshot(self._files(), lock=DagTreeLock.open(self._resources())).digest

    def _files(self) -> VolumeFiles:
        return VolumeFiles.open(
            self._resources(), airflow_settings.volume_mount() if self._in_container else None
        )

    def _resources(self) -> ResourceNames:
        environment = self._environment or conf.get("modal", "environment", fallback=None)
        if not environment:
            raise ConfigError(
                f"bundle {self.name} does not know its environment: set [modal] environment, or "
                '"environment" in the bundle\'s kwargs'
            )
        return ResourceNames(environment)
