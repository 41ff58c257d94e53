"""How does an operation come to know the plugins that belong to the environment's DAGs?"""

from __future__ import annotations

import logging

from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_modal import airflow_settings, names
from airflow_provider_modal.bundles import dag_modules
from airflow_provider_modal.errors import ModalflowError
from airflow_provider_modal.volume import dag_copies, dag_versions
from airflow_provider_modal.volume.files import VolumeFiles

log = logging.getLogger(__name__)


def use_plugins() -> bool:
    """Let this process use the plugins of the version that was parsed last; return whether there are any.

    A DAG's timetable may be one. It costs a look at the Volume, so it is for who has found that something
    is missing.
    """
    with create_session() as session:
        digest = session.scalar(
            select(DagBundleModel.version).where(DagBundleModel.name == names.BUNDLE_NAME)
        )
    if digest is None:
        return False
    files = VolumeFiles.open(airflow_settings.deployed_names(), airflow_settings.volume_mount())
    try:
        if not any(
            path.startswith(f"{dag_copies.PLUGINS}/")
            for path in dag_versions.read_version(files, digest).files
        ):
            return False
        dag_modules.use(dag_copies.materialise(files, digest, dag_copies.default_root()), plugins=True)
    except ModalflowError as error:
        log.warning("the DAGs' plugins are not there: %s", error)
        return False
    return True
