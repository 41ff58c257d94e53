from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.venvs import image, requirements

PASSWORD = "hunter2secret"
WITH_PASSWORD = f"https://u:{PASSWORD}@host"


def test_equal_wishes_have_equal_texts() -> None:
    one = ["Pandas [excel,AWS] >=2 , <3", "foo_bar", 'x; python_version > "3.9"']
    other = ["x ; python_version>'3.9'", "pandas[aws,excel]<3,>=2", "foo.bar", "Foo-Bar"]
    assert requirements.normalised(one, "here") == requirements.normalised(other, "here")
    assert requirements.normalised([], "here") == ()
    assert requirements.normalised(["a @ git+ssh://git@host/a@v1"], "here") == (
        "a @ git+ssh://git@host/a@v1",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-e .", "found '-e .'"),
        ("pandas=2", "found 'pandas=2'"),
        ("", "found ''"),
        ("a\nb", "control character"),
        ("./local", "found './local'"),
        (f"https://u:{PASSWORD}@host/a.whl", "found a URL"),
        (f"a @ https://u:{PASSWORD}@host/a.whl", "holds a user or password"),
        (f"a @ https://{PASSWORD}@host/a.whl", "holds a user or password"),
        ("a @ file:///tmp/a.whl", "file:"),
    ],
)
def test_what_cannot_be_installed_is_told_without_passwords(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        requirements.normalised([text], "the list")
    assert str(raised.value).startswith("the list") and told in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_file_has_comments_and_long_lines_but_no_options() -> None:
    text = "# all of it\n\npandas==2.2.3  # the best\nnumpy>=1,\\\n  <3\r\na @ https://host/a.whl#egg=a\n"
    assert requirements.of_text(text, "r.txt") == (
        "a @ https://host/a.whl#egg=a",
        "numpy<3,>=1",
        "pandas==2.2.3",
    )
    for line, option in (
        ("--index-url=" + WITH_PASSWORD, "--index-url"),
        ("-r other.txt", "-r"),
        ("a==1 --hash=sha256:0", "--hash"),
    ):
        with pytest.raises(ConfigError, match=f"^r.txt has the option {option};") as raised:
            requirements.of_text(line, "r.txt")
        assert PASSWORD not in str(raised.value)


def test_the_nearest_file_applies(tmp_path: Path) -> None:
    for path in ("team/reports", "team/plain/deep", "other"):
        (tmp_path / path).mkdir(parents=True)
    assert requirements.of_dag_file(tmp_path, "dag.py") == ()
    for path, name in ((".", "root"), ("team", "team"), ("team/reports", "reports")):
        (tmp_path / path / "requirements.txt").write_text(f"\ufeff{name}\n", encoding="utf-8")
    assert requirements.of_dag_file(tmp_path, "dag.py") == ("root",)
    assert requirements.of_dag_file(tmp_path, "other/dag.py") == ("root",)
    assert requirements.of_dag_file(tmp_path, "team/reports/dag.py") == ("reports",)
    assert requirements.of_dag_file(tmp_path, "team/plain/deep/dag.py") == ("team",)
    # A path from outside reaches nothing outside of the tree.
    assert requirements.of_dag_file(tmp_path / "other", "../dag.py") == ()
    assert requirements.of_dag_file(tmp_path / "other", str(tmp_path / "dag.py")) == ()
    (tmp_path / "other" / "requirements.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"other/requirements\.txt in the DAG tree is not UTF-8"):
        requirements.of_dag_file(tmp_path, "other/dag.py")


def test_what_airflow_needs_is_pinned_to_what_the_image_has() -> None:
    pins = image.pins()
    assert {"pydantic", "sqlalchemy", "httpx", "modal", "apache-airflow-task-sdk"} <= pins.keys()
    installed = image.installed()
    assert {name: installed.get(name) for name in ("pydantic", "modal")} == {
        name: pins[name] for name in ("pydantic", "modal")
    }
    # Tools beside it are not.
    assert "pytest" in installed and "pytest" not in pins
    image.check([f"pydantic=={pins['pydantic']}", "pytest<1", "pydantic<1; python_version < '3'"], pins)
    for asked in ("Pydantic[email]<1", "pydantic @ https://host/p.whl"):
        with pytest.raises(ConfigError) as raised:
            image.check(["pandas", asked], pins)
        assert f"Airflow in this image needs {asked[:8]} {pins['pydantic']}" in str(raised.value)
