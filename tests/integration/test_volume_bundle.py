"""The bundle in processes of their own, because Airflow reads its settings when it is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import modal
import pytest

from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.volume import dag_copies, dag_versions
from airflow_provider_modal.volume.files import VolumeFiles
from local_modal.testing import LocalModal
from tests.support.modal_env import using

PREAMBLE = """
import json, sys, time, warnings
warnings.simplefilter("error", DeprecationWarning)
from pathlib import Path
from airflow_provider_modal.bundles.volume import VolumeDagBundle
from airflow.dag_processing.bundles.base import unpack_bundle_version
from airflow_provider_modal.errors import ModalflowError
def version(bundle):
    return unpack_bundle_version(bundle.get_current_version(), bundle)[0]
def tree(bundle):
    return {str(p.relative_to(bundle.path)): p.read_text() for p in bundle.path.rglob("*") if p.is_file()}
def tell(**facts):
    print("FACTS " + json.dumps(facts))
"""

DAG = """
from airflow.sdk import DAG
from words import WORD
with DAG("{dag_id}", schedule=None):
    pass
"""

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _modal(local_modal: LocalModal) -> Iterator[None]:
    with using(local_modal):
        yield


@pytest.fixture
def env_name() -> str:
    return f"bundle-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def files(env_name: str) -> VolumeFiles:
    resources = ResourceNames(env_name)
    modal.Volume.from_name(resources.volume, version=2, create_if_missing=True).hydrate()
    modal.Dict.from_name(resources.state_dict, create_if_missing=True).hydrate()
    return VolumeFiles.open(resources)


@pytest.fixture
def run(tmp_path: Path, local_modal: LocalModal) -> Run:
    def run(code: str, *arguments: str, **environ: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + code, *arguments],
            env={
                **{name: value for name, value in local_modal.env.items() if not name.startswith("AIRFLOW")},
                "AIRFLOW_HOME": str(tmp_path / "home"),
                "TMPDIR": str(tmp_path),
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        [facts] = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
        result: dict[str, Any] = json.loads(facts.removeprefix("FACTS "))
        return result

    return run


def test_an_airflow_of_your_own_follows_the_volume(
    run: Run, files: VolumeFiles, env_name: str, tmp_path: Path
) -> None:
    """By Airflow's own bundle manager, configured as the README says, in two processes of one host."""
    files.write_many(
        {
            "dags/a.py": DAG.format(dag_id="a").encode(),
            "dags/include/words.py": b"WORD = 1",
            "dags/include/template.py": DAG.format(dag_id="not_a_dag_file").encode(),
            "dags/plugins/p.py": b"raise SystemExit('an airflow dag? no')",
            "dags/.airflowignore": b"ignored.py",
            "dags/ignored.py": b"raise SystemExit('an airflow dag? no')",
        }
    )
    first = dag_versions.snapshot(files).digest
    home = tmp_path / "home"
    home.mkdir()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = re.findall(r"```ini\n(.*?VolumeDagBundle.*?)```", readme, re.DOTALL)
    (home / "airflow.cfg").write_text(snippet.replace("environment = prod", f"environment = {env_name}"))
    code = f"""
warnings.filterwarnings("ignore", message="GitWildMatchPattern")  # Airflow's own use of pathspec
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag
from airflow_provider_modal.names import ResourceNames
from airflow_provider_modal.volume.files import VolumeFiles
def parsed(bundle):
    bag = BundleDagBag(bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
    return [sorted(bag.dag_ids), bag.import_errors]
bundle = DagBundlesManager().get_bundle("modal-volume", version=(sys.argv[1:] or [None])[0])
bundle.initialize()
first, before = version(bundle), parsed(bundle)
if not sys.argv[1:]:
    VolumeFiles.open(ResourceNames({env_name!r})).write("dags/team/b.py", {DAG.format(dag_id="b").encode()!r})
    bundle.refresh()
old = DagBundlesManager().get_bundle("modal-volume", version=first)
old.initialize()
tell(first=first, before=before, second=version(bundle), after=parsed(bundle),
     old=[version(old), str(old.path)], path=str(bundle.path), versions=str(bundle.versions_dir),
     url=bundle.view_url_template())
"""
    with ThreadPoolExecutor() as pool:
        other, facts = pool.map(lambda arguments: run(code, *arguments), [[first], []])

    assert (facts["first"], facts["before"]) == (first, [["a"], {}])
    assert facts["after"] == [["a", "b"], {}]
    assert facts["second"] == dag_versions.head(files)
    assert (other["first"], other["before"]) == (first, [["a"], {}])
    # Where Airflow removes versions that nobody has used for a while.
    assert facts["path"] == f"{facts['versions']}/{facts['second']}"
    assert facts["old"] == [facts["first"], f"{facts['versions']}/{facts['first']}"]
    left = {place.name for place in Path(facts["versions"]).iterdir() if not place.name.endswith(".lock")}
    assert left == {facts["first"], facts["second"]}
    assert facts["url"] is None


def test_in_a_container_it_uses_what_is_on_disk_without_modal(
    run: Run, files: VolumeFiles, env_name: str, tmp_path: Path
) -> None:
    files.write("dags/a.py", b"A")
    digest = dag_versions.snapshot(files).digest
    dag_copies.materialise(files, digest, tmp_path / "modalflow" / "dag-versions")

    facts = run(
        f"""
for wanted in (None, {digest!r}):
    bundle = VolumeDagBundle(name="modal-volume", version=wanted)
    bundle.initialize()
    if not bundle.version:
        bundle.refresh()
    assert version(bundle) == {digest!r}
tell(tree=tree(bundle), modal="modal" in sys.modules)
""",
        MODALFLOW_ENV=env_name,
        MODALFLOW_ROLE="worker",
        MODALFLOW_DAG_VERSION=digest,
        MODAL_SERVER_URL="http://127.0.0.1:1",
    )

    assert facts == {"tree": {"a.py": "A"}, "modal": False}


def test_bad_versions_and_settings_are_told_in_a_sentence(
    run: Run, files: VolumeFiles, env_name: str
) -> None:
    facts = run(
        f"""
def message(act):
    try:
        act()
    except ModalflowError as error:
        return str(error)
bundle = lambda **kwargs: VolumeDagBundle(name="modal-volume", **kwargs)
tell(
    hostile=message(bundle(version="../../x", environment={env_name!r}).initialize),
    unknown=message(bundle(version="0" * 64, environment={env_name!r}).initialize),
    homeless=message(bundle().initialize),
    fixed=message(bundle(version="0" * 64, environment={env_name!r}).refresh),
    early=str(bundle().path),
)
"""
    )

    assert "not the digest of a DAG version" in facts["hostile"]
    assert "not on the Volume" in facts["unknown"]
    assert "set [modal] environment" in facts["homeless"]
    assert "can't move to another" in facts["fixed"]
    assert not Path(facts["early"]).exists()


def test_importing_the_package_of_bundles_does_not_import_airflow() -> None:
    code = "import airflow_provider_modal.bundles, sys; sys.exit('airflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
