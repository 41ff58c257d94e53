from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_provider_modal.cli.local_tree import is_left_out, scan
from airflow_provider_modal.errors import ConfigError


def make(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


def test_a_folder_of_dags_is_taken_as_it_is(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.py",
        "team/b.py",
        "data/日本 ü.yaml",
        "plugins/p.py",
        ".airflowignore",
        "sub/.airflowignore",
    )
    assert sorted(scan(tmp_path).files) == [
        ".airflowignore",
        "a.py",
        "data/日本 ü.yaml",
        "plugins/p.py",
        "sub/.airflowignore",
        "team/b.py",
    ]


def test_of_a_project_only_what_concerns_dags_is_taken(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("dags/a.py", "dags/team/b.py", "plugins/p.py", "include/sql/q.sql", "requirements.txt"),
        *(".airflowignore", "README.md", "tests/test_a.py", "Dockerfile"),
    )
    found = scan(tmp_path)
    assert found.project
    assert sorted(found.files) == [
        ".airflowignore",
        "a.py",
        "include/sql/q.sql",
        "plugins/p.py",
        "requirements.txt",
        "team/b.py",
    ]


def test_two_files_for_one_place_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "dags/plugins/p.py", "plugins/p.py")
    with pytest.raises(ConfigError, match=r"dags/plugins/p\.py .* keep one of them"):
        scan(tmp_path)


def test_caches_hidden_files_and_virtual_environments_are_left_out(tmp_path: Path) -> None:
    make(
        tmp_path,
        *("a.py", ".git/config", ".env", "__pycache__/a.pyc", "a.pyc", "x/node_modules/y.js"),
        *("env/pyvenv.cfg", "env/lib/z.py", "tests/t.py", "sub/tests/t.py", "big.bin"),
    )
    found = scan(tmp_path, ["tests", "*.bin"])
    assert list(found.files) == ["a.py"]
    assert list(found.skipped) == [str(tmp_path / "env")]


@pytest.mark.parametrize(
    ("path", "patterns", "left_out"),
    [
        ("a.py", [], False),
        (".airflowignore", [], False),
        (".env", [], True),
        ("x/.hidden/a.py", [], True),
        ("tests/a.py", ["tests/"], True),
        ("x/tests/a.py", ["tests/*"], False),
        ("x/tests/a.py", ["x/tests/*"], True),
        ("x/y/a.sql", ["*.sql"], True),
        ("contests/a.py", ["tests"], False),
    ],
)
def test_what_is_left_out(path: str, patterns: list[str], left_out: bool) -> None:
    assert is_left_out(path, patterns) is left_out


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "dags/a.py", "shared/m.py")
    (tmp_path / "dags/linked").symlink_to(tmp_path / "shared")
    (tmp_path / "dags/b.py").symlink_to("a.py")
    assert sorted(scan(tmp_path).files) == ["a.py", "b.py", "linked/m.py"]


@pytest.mark.parametrize("target", ["/etc/hostname", "nowhere", "."])
def test_links_that_lead_elsewhere_are_refused_or_excluded(tmp_path: Path, target: str) -> None:
    make(tmp_path, "a.py")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="--exclude link"):
        scan(tmp_path)
    assert list(scan(tmp_path, ["link"]).files) == ["a.py"]


@pytest.mark.parametrize("name", [b"a\nb.py", b"a\x1b[2J.py", b"a\\b.py", b"all*", b"latin\xe9.py"])
def test_names_that_mislead_or_cannot_travel_are_refused(tmp_path: Path, name: bytes) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_text("x")
    with pytest.raises(ConfigError, match="rename the file"):
        scan(tmp_path)


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe")
    found = scan(tmp_path)
    assert list(found.files) == ["a.py"]
    assert found.skipped == {str(tmp_path / "pipe"): "no regular file"}
