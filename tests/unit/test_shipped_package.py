from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_modal import image
from airflow_provider_modal.config import EnvironmentConfig, ImageConfig
from airflow_provider_modal.version_compat import airflow_version


def test_the_base_is_airflows_image_of_the_versions_here() -> None:
    assert image.base_tag().startswith(f"apache/airflow:{airflow_version()}-python3.")


def test_dependencies_are_pinned_to_what_is_installed_here() -> None:
    pinned = dict(pin.split("==") for pin in image.pinned_dependencies())

    assert pinned.keys() == {"modal", "psycopg2-binary", "cloudpickle", "click", "pyyaml", "rich"}
    assert pinned["modal"] == importlib.metadata.version("modal")


def test_packages_of_the_user_cannot_replace_airflow() -> None:
    def wanted(base: str | None) -> list[str]:
        return image.requirements(EnvironmentConfig("", image=ImageConfig(base=base, pip=("pandas",))))

    assert f"apache-airflow=={airflow_version()}" in wanted(None)
    assert wanted(None)[-1] == "pandas"
    assert not [text for text in wanted("registry/airflow:1") if text.startswith("apache-airflow")]


def test_what_is_shipped_makes_the_package_known_to_the_metadata_finder(tmp_path: Path) -> None:
    for remote, local in image.metadata_files().items():
        (tmp_path / remote).parent.mkdir(exist_ok=True)
        (tmp_path / remote).write_bytes(local.read_bytes())

    [shipped] = importlib.metadata.distributions(name=image.DISTRIBUTION, path=[str(tmp_path)])
    [provider] = shipped.entry_points.select(group="apache_airflow_provider")
    assert provider.value == "airflow_provider_modal.get_provider_info:get_provider_info"
    assert shipped.version == importlib.metadata.version(image.DISTRIBUTION)


def test_nothing_of_this_machine_is_shipped() -> None:
    """direct_url.json and RECORD tell where the package was installed from."""
    for local in image.metadata_files().values():
        assert str(Path(image.package_folder()).parent) not in local.read_text()


def test_the_data_files_are_in_the_folder_that_is_shipped() -> None:
    assert (image.package_folder() / "provider.yaml").is_file()


def test_an_installation_without_metadata_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "airflow_provider_modal-0.1.0.dist-info").mkdir()
    (tmp_path / "airflow_provider_modal-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: airflow-provider-modal\nVersion: 0.1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(image.ConfigError, match="pip install"):
        image.metadata_files()


def test_an_image_is_described_without_a_connection() -> None:
    config = EnvironmentConfig(
        "postgresql://u@h/d",
        image=ImageConfig(base="registry/airflow:1", apt=("git",), pip=("pandas==2.2.3",), env={"A": "b c"}),
    )

    assert image.build_image(config) is not None


def test_describing_an_environment_never_imports_airflow() -> None:
    """Importing Airflow takes seconds, and needs settings that the user's machine may not have."""
    code = (
        "import sys\n"
        "from airflow_provider_modal import app, provision\n"
        "from airflow_provider_modal.config import EnvironmentConfig\n"
        "assert 'modal' not in sys.modules\n"
        "config = EnvironmentConfig('postgresql://u@h/d')\n"
        "app.build_app(config, 'dev'), app.describe(config, 'dev')\n"
        "sys.exit('airflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
