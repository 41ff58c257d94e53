"""What do the containers run in?

Airflow's own image of the versions that are installed where ``create`` runs, plus this package's
dependencies and the user's. The package itself is not installed but mounted, so that a new release needs no
image build: with its data files, and with the metadata by which Airflow finds its entry points.
(``add_local_python_source`` would take ``*.py`` files only.)
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.version_compat import airflow_version

if TYPE_CHECKING:
    import modal

    from airflow_provider_modal.config import EnvironmentConfig

DISTRIBUTION = "airflow-provider-modal"
PACKAGE = "airflow_provider_modal"
REMOTE_ROOT = "/root"
"""Modal puts it on every container's ``sys.path``."""

# direct_url.json, RECORD and installers' own files hold paths of the user's machine.
_METADATA_FILES = ("METADATA", "entry_points.txt")
_PROVIDED_BY_BASE = ("apache-airflow",)


def base_tag() -> str:
    """Return the default base image: the installed Airflow's and Python's versions."""
    return f"apache/airflow:{airflow_version()}-python{sys.version_info.major}.{sys.version_info.minor}"


def build_image(config: EnvironmentConfig) -> modal.Image:
    """Return the image of all functions of an environment.

    :raises ConfigError: this package's installation is incomplete, so that it can't be shipped.
    """
    import modal

    image = modal.Image.from_registry(
        config.image.base or base_tag(),
        # Airflow's image ends with an unprivileged user, who may not install packages.
        setup_dockerfile_commands=["USER root"],
    ).entrypoint([])
    if config.image.apt:
        image = image.apt_install(*config.image.apt)
    image = image.uv_pip_install(*requirements(config))
    if config.image.env:
        image = image.env(dict(config.image.env))
    return with_package(image)


def with_package(image: modal.Image) -> modal.Image:
    """Return an image to which this package is mounted when a container starts.

    :raises ConfigError: this package's installation is incomplete, so that it can't be shipped.
    """
    image = image.add_local_dir(
        package_folder(), f"{REMOTE_ROOT}/{PACKAGE}", ignore=["**/__pycache__", "**/*.pyc"]
    )
    for remote, local in sorted(metadata_files().items()):
        image = image.add_local_file(local, f"{REMOTE_ROOT}/{remote}")
    return image


def requirements(config: EnvironmentConfig) -> list[str]:
    """Return what is installed on top of the base image, in one go.

    :raises ConfigError: this package's installation is incomplete.
    """
    # A package of the user's may ask for a newer Airflow: better no image than one whose Airflow does not fit
    # the database. Which Airflow a base image of the user's has is not known.
    held = [] if config.image.base else [f"apache-airflow=={airflow_version()}"]
    return [*held, *pinned_dependencies(), *config.image.pip]


def pinned_dependencies() -> list[str]:
    """Return this package's dependencies, each pinned to the version that is installed here."""
    pinned = []
    for text in requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name not in _PROVIDED_BY_BASE:
            try:
                pinned.append(f"{requirement.name}=={version(requirement.name)}")
            except PackageNotFoundError:
                raise ConfigError(
                    f"{requirement.name}, which {DISTRIBUTION} needs, is not installed; run "
                    f"`pip install {DISTRIBUTION}` again"
                ) from None
    return pinned


def package_folder() -> Path:
    """Return the folder of this package's code and data."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def metadata_files() -> dict[str, Path]:
    """Return the metadata that containers need: local file by path below ``REMOTE_ROOT``.

    :raises ConfigError: the package was not installed by pip or uv, so it has no metadata.
    """
    installed = distribution(DISTRIBUTION)
    found = {
        f"{PACKAGE}-{installed.version}.dist-info/{file.name}": Path(str(file.locate()))
        for file in installed.files or ()
        if file.parent.name.endswith(".dist-info") and file.name in _METADATA_FILES
    }
    if len(found) != len(_METADATA_FILES):
        raise ConfigError(
            f"the installed {DISTRIBUTION} has no {' or '.join(_METADATA_FILES)} that could be shipped; "
            "install it with `pip install`"
        )
    return found
