"""Does the parse phase store what parses, tell what does not, and leave the rest alone?"""

from __future__ import annotations

import resource
from datetime import datetime
from pathlib import Path

import pytest

from airflow_provider_modal import names
from airflow_provider_modal.scheduler import due
from local_modal.testing import wait_until
from tests.support.airflow_children import AirflowChildren, trigger_run
from tests.support.processes import is_running

GOOD = """
from airflow.sdk import DAG, task
with DAG("{dag_id}", schedule=None):
    @task
    def hello(): print("hello")
    hello()
"""
EMPTY = "# a module that mentions dag and airflow and has none\n"


def _dag(dag_id: str) -> str:
    return GOOD.format(dag_id=dag_id)


def _active(children: AirflowChildren) -> set[str]:
    return {dag_id for (dag_id,) in children.sql("SELECT dag_id FROM dag WHERE NOT is_stale")}


def _errors(children: AirflowChildren) -> dict[str, str]:
    return dict(children.sql("SELECT filename, stacktrace FROM import_error"))


def _parsed_at(children: AirflowChildren) -> dict[str, datetime]:
    return dict(children.sql("SELECT dag_id, last_parsed_time FROM dag"))


def test_good_file_is_stored_with_its_version(airflow_children: AirflowChildren) -> None:
    done = airflow_children.parse({"good.py": _dag("good")})
    assert (done["files"], done["errors"], done["left"]) == (1, 0, 0)
    digest = airflow_children.dag_version({"good.py": _dag("good")})
    assert airflow_children.sql("SELECT dag_id, bundle_name, bundle_version FROM dag") == [
        ("good", names.BUNDLE_NAME, digest)
    ]
    assert airflow_children.sql("SELECT version FROM dag_bundle") == [(digest,)]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("def broken(:  # dag airflow", "SyntaxError"),
        ("# dag airflow\nwhile True: pass", "import timeout"),
        ("# dag airflow\nimport os; os._exit(3)", "exit code 3"),
        ("# dag airflow\ntaken = bytearray(3 * 1024 ** 3)", "raise scheduler.parse_memory"),
        # Announces a message of four gigabytes.
        ("# dag airflow\nimport os; os.write(0, b'\\xff' * 4)\n1 / 0", "The process that parsed bad.py"),
        ("# dag airflow\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        (
            "# dag airflow\nimport signal\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\nwhile True: pass",
            "was not parsed within 2 s and could not be interrupted",
        ),
        (
            "# dag airflow\nimport time\nwhile True:\n  try: time.sleep(9)\n  except BaseException: pass",
            "within 2 s",
        ),
        ("# dag airflow\nimport no_such_module_anywhere", "no_such_module_anywhere"),
    ],
    ids=[
        "syntax",
        "endless",
        "exits",
        "takes memory",
        "announces gigabytes",
        "killed",
        "uninterruptible",
        "catches everything",
        "import",
    ],
)
def test_bad_file_leaves_an_import_error_and_others_alone(
    airflow_children: AirflowChildren, broken: str, expected: str
) -> None:
    done = airflow_children.parse({"good.py": _dag("good"), "bad.py": broken})
    assert (done["files"], done["errors"]) == (2, 1)
    assert done["seconds"] < 20
    assert _active(airflow_children) == {"good"}
    errors = _errors(airflow_children)
    assert list(errors) == ["bad.py"]
    assert expected in errors["bad.py"]


def test_children_of_a_killed_file_die_with_it(airflow_children: AirflowChildren, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    stray = (
        "# dag airflow\nimport subprocess, pathlib\n"
        "p = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(p.pid))\n"
        "import time\nwhile True:\n  try: time.sleep(9)\n  except BaseException: pass"
    )
    airflow_children.parse({"stray.py": stray}, per_file=1.0)
    pid = int(note.read_text())
    wait_until(lambda: not is_running(pid), 30, f"process {pid} has ended")


def test_daemon_of_a_good_file_does_not_survive_the_phase(
    airflow_children: AirflowChildren, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    daemon = _dag("daemon") + (
        "import subprocess, pathlib\n"
        "p = subprocess.Popen(['sleep', '60'], start_new_session=True, stdin=subprocess.DEVNULL,\n"
        "                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(p.pid))\n"
    )
    airflow_children.parse({"daemon.py": daemon})
    assert _active(airflow_children) == {"daemon"}
    pid = int(note.read_text())
    wait_until(lambda: not is_running(pid), 30, f"process {pid} has ended")


def test_unchanged_files_are_not_parsed_again(airflow_children: AirflowChildren) -> None:
    first = {"a.py": _dag("a"), "b.py": _dag("b"), "module.py": EMPTY, "bad.py": "1 / 0  # dag airflow"}
    assert airflow_children.parse(first)["files"] == 4
    before = _parsed_at(airflow_children)
    second = {**first, "b.py": _dag("b") + "# changed"}
    done = airflow_children.parse(second, unchanged=["a.py", "bad.py", "module.py"])
    assert done["files"] == 1
    after = _parsed_at(airflow_children)
    assert after["a"] == before["a"]
    assert after["b"] > before["b"]
    assert list(_errors(airflow_children)) == ["bad.py"]


def test_a_thousand_unchanged_files_are_not_parsed_again(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"one.py": _dag("one")})
    many = {f"folder_{number % 10}/file_{number}.py": EMPTY for number in range(1000)}
    done = airflow_children.parse({**many, "two.py": _dag("two")}, unchanged=[*many])
    assert (done["files"], done["left"]) == (1, 0)
    assert _active(airflow_children) == {"two"}


def test_helper_packages_are_found_and_ignored_files_are_not_parsed(
    airflow_children: AirflowChildren,
) -> None:
    done = airflow_children.parse(
        {
            ".airflowignore": "ignored/\n",
            "ignored/broken.py": "1 / 0  # dag airflow",
            "helpers/__init__.py": "",
            "helpers/ids.py": "DAG_ID = 'helped'",
            "team/uses_helper.py": "from helpers.ids import DAG_ID\n" + _dag("x").replace('"x"', "DAG_ID"),
        }
    )
    assert (done["files"], _errors(airflow_children)) == (1, {})
    assert _active(airflow_children) == {"helped"}


def test_files_are_parsed_again_after_airflows_interval(airflow_children: AirflowChildren) -> None:
    files = {"a.py": _dag("a"), "b.py": _dag("b")}
    airflow_children.parse(files)
    airflow_children.sql("UPDATE dag SET last_parsed_time = now() - interval '2 hours' WHERE dag_id = 'a'")
    assert _need(airflow_children, files).reasons == ("files are due again",)
    assert airflow_children.parse(files, unchanged=list(files))["files"] == 1
    assert _need(airflow_children, files).reasons == ()


def test_corrected_file_loses_its_error(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"a.py": "1 / 0  # dag airflow"})
    assert "ZeroDivisionError" in _errors(airflow_children)["a.py"]
    airflow_children.parse({"a.py": _dag("a")})
    assert _errors(airflow_children) == {}
    assert _active(airflow_children) == {"a"}


def test_removed_file_deactivates_its_dags(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"a.py": _dag("a"), "b.py": _dag("b")})
    airflow_children.parse({"a.py": _dag("a")}, unchanged=["a.py"])
    assert _active(airflow_children) == {"a"}


def test_dag_removed_from_a_file_is_deactivated_at_once(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"a.py": _dag("one") + _dag("two"), "b.py": _dag("b")})
    assert _active(airflow_children) == {"one", "two", "b"}
    airflow_children.parse({"a.py": _dag("one"), "b.py": _dag("b")}, unchanged=["b.py"])
    assert _active(airflow_children) == {"one", "b"}


def test_all_files_gone_needs_a_second_look(airflow_children: AirflowChildren) -> None:
    airflow_children.parse({"a.py": _dag("a")})
    airflow_children.parse({})
    assert _active(airflow_children) == {"a"}
    assert _need(airflow_children, {}).reasons == ("all DAG files are gone",)
    airflow_children.parse({})
    assert _active(airflow_children) == set()
    assert _need(airflow_children, {}).reasons == ()


def test_phase_that_is_cut_short_goes_on_next_time(airflow_children: AirflowChildren) -> None:
    slow = "# dag airflow\nimport time; time.sleep({})\n"
    files = {f"slow{n}.py": slow.format(1.2) + _dag(f"slow{n}") for n in range(8)}
    first = airflow_children.parse(files, phase=0.5, per_file=20)
    assert 0 < first["files"] < 8
    assert first["left"] == 8 - first["files"]
    assert _need(airflow_children, files).reasons == ("DAG files changed",)
    second = airflow_children.parse(files, per_file=20)
    assert second["files"] == first["left"]
    assert _need(airflow_children, files).reasons == ()
    assert len(_active(airflow_children)) == 8


def test_callback_is_run_with_limits_of_its_own(airflow_children: AirflowChildren, tmp_path: Path) -> None:
    note, limits = tmp_path / "called", tmp_path / "limits"
    dag = f"""
import resource, time
from airflow.sdk import DAG, task
with open({str(limits)!r}, "a") as limits:
    print(resource.getrlimit(resource.RLIMIT_DATA)[0], file=limits)
def on_success(context):
    time.sleep(4)
    open({str(note)!r}, "w").write(context["run_id"])
with DAG("called", schedule=None, on_success_callback=on_success):
    @task
    def hello(): pass
    hello()
"""
    files = {"called.py": dag}
    airflow_children.parse(files)
    trigger_run(airflow_children, "called", "r1")
    airflow_children.schedule()
    assert "callbacks wait" in _need(airflow_children, files).reasons
    airflow_children.parse(files, unchanged=["called.py"])
    assert note.read_text() == "r1", "it may take longer than a file"
    assert limits.read_text().split() == [str(2048 * 1024**2), str(resource.RLIM_INFINITY)]
    assert _need(airflow_children, files).reasons == ()


def _need(children: AirflowChildren, files: dict[str, str]) -> due.ParseNeed:
    with children.connection() as connection:
        return due.parse_need(connection, children.dag_version(files), empty=not files, environ={})
