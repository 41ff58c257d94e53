from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal import config
from airflow_provider_modal.config import EnvironmentConfig
from airflow_provider_modal.errors import ConfigError

PASSWORD = "p4ss-w0rd"
URL = f"postgresql://airflow:{PASSWORD}@db.example.com:5432/airflow"


def parse(data: Any, environ: dict[str, str] | None = None) -> EnvironmentConfig:
    return config.parse(data, source="config.yaml", environ=environ or {})


def with_database(**sections: Any) -> dict[str, Any]:
    return {"database": {"connection_string": URL}, **sections}


def refused(data: Any, environ: dict[str, str] | None = None) -> str:
    """Return the sentence that refuses ``data``; it is short, and free of secrets."""
    with pytest.raises(ConfigError) as caught:
        parse(data, environ)
    message = str(caught.value)
    assert PASSWORD not in message
    assert len(message.splitlines()) <= 2
    return message


def test_only_the_database_is_needed() -> None:
    parsed = parse(with_database())
    assert parsed.connection_string == URL
    assert parsed.scheduler.interval_seconds == 60
    assert parsed.scheduler.parse_timeout_seconds == 5
    assert parsed.executor.parallelism == 16
    assert parsed.workers["default"].memory == 2048
    assert parsed.task_timeout("default") == 3600


def test_everything_can_be_set() -> None:
    parsed = parse(
        with_database(
            scheduler={"interval_seconds": 10, "parse_timeout_seconds": 2.5, "parse_memory": 0},
            executor={"parallelism": 4, "task_timeout": 60, "execution_api": "in_process"},
            workers={
                "default": {"cpu": 0.25, "max_containers": 3},
                "gpu": {"gpu": "A10G", "timeout": 7200, "secrets": ["hf"]},
            },
            image={"apt": ["git"], "pip": ["pandas==2.2"], "env": {"A": 1}, "secrets": ["s3"]},
            airflow={"core.max_active_runs_per_dag": 4, "core.test_connection": True},
            keys={"fernet_key": "k"},
        )
    )
    assert parsed.scheduler.parse_timeout_seconds == 2.5
    assert parsed.workers["gpu"].gpu == "A10G"
    assert parsed.task_timeout("gpu") == 7200
    assert parsed.task_timeout("default") == 60
    assert parsed.image.env == {"A": "1"}
    assert parsed.airflow == {"core.max_active_runs_per_dag": "4", "core.test_connection": "True"}
    assert parsed.fernet_key == "k"


def test_values_read_the_environment() -> None:
    parsed = parse(
        {
            "database": {"connection_string": "postgresql://u:${PW}@h/db"},
            "executor": {"parallelism": "${N}"},
            "image": {"pip": ["a==${V}"]},
        },
        {"PW": PASSWORD, "N": "7", "V": "1.0"},
    )
    assert PASSWORD in parsed.connection_string
    assert parsed.executor.parallelism == 7
    assert parsed.image.pip == ("a==1.0",)


def test_a_variable_that_is_not_set_is_named() -> None:
    message = refused({"database": {"connection_string": "${DATABASE_URL}"}})
    assert "DATABASE_URL" in message
    assert "database.connection_string" in message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "expected sections"),
        ([], "expected sections"),
        ("text", "expected sections"),
        ({}, "database.connection_string is missing"),
        ({"database": None}, "database.connection_string is missing"),
        ({"database": "x"}, "database must hold keys and values, found a text"),
        ({"database": {}}, "database.connection_string is missing"),
        ({"database": {"connection_string": None}}, "must be a text, found nothing"),
        ({"database": {"connection_string": ["x"]}}, "must be a text, found a list"),
        ({"database": {"conection_string": URL}}, "did you mean database.connection_string?"),
        ({"databse": {}}, "did you mean database?"),
        ({"zzz": 1}, "known keys: airflow, database"),
        ({1: 2}, "unknown key 1"),
        (with_database(scheduler={"interval": 3}), "did you mean scheduler.interval_seconds?"),
        (with_database(scheduler={"interval_seconds": 0}), "must be more than 0, found 0"),
        (with_database(scheduler={"interval_seconds": -5}), "must be more than 0"),
        (with_database(scheduler={"interval_seconds": 1.5}), "must be a whole number, found 1.5"),
        (with_database(scheduler={"interval_seconds": "soon"}), "must be a whole number, found 'soon'"),
        (with_database(scheduler={"interval_seconds": True}), "must be a whole number, found True"),
        (with_database(scheduler={"interval_seconds": [1]}), "must be a whole number, found a list"),
        (with_database(scheduler={"interval_seconds": None}), "must be a whole number, found nothing"),
        (with_database(scheduler={"parse_memory": -1}), "must be 0 or more, found -1"),
        (with_database(scheduler={"parse_memory": 100}), "must be at least 512, found 100: Airflow alone"),
        (with_database(scheduler={"max_run_seconds": float("inf")}), "must be a number"),
        (with_database(scheduler={"max_run_seconds": float("nan")}), "must be a number"),
        (
            with_database(scheduler={"max_run_seconds": 1e9}),
            "must be at most 86220, found 1000000000: Modal ends",
        ),
        (
            with_database(scheduler={"interval_seconds": 4}),
            "must be at least 5, found 4: each time a container",
        ),
        (
            with_database(executor={"zombie_after_seconds": 29}),
            "must be at least 30, found 29: healthy tasks",
        ),
        (with_database(scheduler=[1]), "scheduler must hold keys and values, found a list"),
        (with_database(executor={"parallelism": "many"}), "executor.parallelism must be a whole number"),
        (with_database(executor={"execution_api": "http"}), "so far only 'in_process' works"),
        (with_database(executor={"task_timeout": 86400}), "Modal ends a call after 24 hours"),
        (with_database(workers={"default": {"timeout": 86400}}), "workers.default.timeout is 86400 seconds"),
        (with_database(executor={"task_timeout": 86041}), "at most 86040 are possible"),
        (with_database(workers={"BIG": {}}), "worker profile 'BIG' is not allowed"),
        (with_database(workers={"a/b": {}}), "worker profile 'a/b' is not allowed"),
        (with_database(workers={"default": {"ram": 1}}), "unknown key workers.default.ram"),
        (with_database(workers={"default": {"memory": "2 GB"}}), "workers.default.memory must be a whole"),
        (with_database(workers={"default": {"min_containers": -1}}), "must be 0 or more"),
        (with_database(workers={"default": {"max_containers": 0}}), "must be more than 0"),
        (with_database(workers={"default": {"nonpreemptible": 1}}), "must be true or false, found 1"),
        (with_database(workers={8: {}, "8": {}}), "workers.8 is given twice"),
        (with_database(ui={"users": {8: {"password": "a"}, "8": {}}}), "ui.users.8 is given twice"),
        (with_database(workers={"default": 3}), "workers.default must hold keys and values"),
        (with_database(workers={"default": {"secrets": "one"}}), "must be a list of texts, found a text"),
        (with_database(image={"pip": "pandas"}), "image.pip must be a list of texts, found a text"),
        (with_database(image={"pip": [1]}), "image.pip must be a list of texts"),
        (with_database(image={"env": ["A=1"]}), "image.env must hold keys and values"),
        (with_database(image={"env": {"A": {}}}), "image.env.A must be a text"),
        (with_database(image={"base": ["x"]}), "image.base must be a text"),
        (with_database(airflow={"parallelism": 1}), "write it as 'section.option'"),
        (with_database(airflow={"core.executor": "LocalExecutor"}), "it is ModalExecutor"),
        (with_database(airflow={"core.fernet_key": PASSWORD}), "set keys.fernet_key"),
        (with_database(airflow={"database.sql_alchemy_conn": URL}), "set database.connection_string"),
        (with_database(airflow={"core.x": {"a": 1}}), "must be a text"),
        (with_database(keys={"fernet": PASSWORD}), "did you mean keys.fernet_key?"),
        (with_database(keys={"fernet_key": None}), "keys.fernet_key must be a text"),
        (with_database(xcom={"threshold_bytes": -1}), "xcom.threshold_bytes must be 0 or more"),
        (with_database(xcom={"allow_pickle": 1}), "xcom.allow_pickle must be true or false"),
    ],
)
def test_what_is_wrong_is_named(data: Any, says: str) -> None:
    message = refused(data)
    assert says in message
    assert message.startswith("config.yaml: ") or "worker profile" in message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:////tmp/airflow.db", "found SQLite"),
        (f"mysql://u:{PASSWORD}@h/db", "found MySQL"),
        (f"mysql+pymysql://u:{PASSWORD}@h/db", "found MySQL"),
        (f"mssql://u:{PASSWORD}@h/db", "found something else"),
        (PASSWORD, "found no URL"),
        ("", "found no URL"),
        (f"u:{PASSWORD}@h/db", "found no URL"),
        (f"postgresql:u:{PASSWORD}@h/db", "found no URL"),
    ],
)
def test_other_databases_are_refused(url: str, says: str) -> None:
    message = refused({"database": {"connection_string": url}})
    assert says in message
    assert "postgresql://" in message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("u:Sec@ret9@h/db", "percent-encode what is special in user and password: '%' is %25, '@' is %40"),
        ("u:Sec/ret9@h/db", "percent-encode"),
        ("u:12/ret9@h/db", "percent-encode"),
        ("u:12#Sec@h/db", "percent-encode"),
        ("u:12?Sec@h/db", "percent-encode"),
        ("u:12?Sec/ret9@h/db", "not name=value"),
        ("u:Sec%ret9@h/db", "without two hexadecimal digits"),
        ("u:Sec@h:54e/db", "its port is not a number"),
        ("u:Sec@h:65536/db", "its port is not a number"),
        ("u:Sec@/db", "it names no host"),
        ("/db", "it names no host"),
    ],
)
def test_a_url_that_is_cut_within_the_password_is_refused_without_a_piece_of_it(url: str, says: str) -> None:
    message = refused({"database": {"connection_string": f"postgresql://{url}"}})
    assert says in message
    assert "Sec" not in message and "ret9" not in message


@pytest.mark.parametrize(
    "url",
    [
        "u:a%40b%2Fc@h/db",
        "h1:5432,h2:5432/db?user=u@x&password=a/b@c",
        "u:p@[::1]:5432/db",
        "u:a:b@h",
        "/db?host=h",
    ],
)
def test_a_url_that_libpq_understands_is_taken_as_it_is(url: str) -> None:
    parsed = parse({"database": {"connection_string": f"postgresql://{url}"}})
    assert parsed.connection_string == f"postgresql://{url}"


def test_a_profile_and_a_user_may_have_a_number_for_a_name() -> None:
    parsed = parse(
        with_database(
            workers={8: {"gpu": "A10G", "memory": 9999}},
            ui={"users": {7: {"password": PASSWORD, "role": "op"}}},
        )
    )
    assert (parsed.workers["8"].gpu, parsed.workers["8"].memory) == ("A10G", 9999)
    assert parsed.ui_users["7"].role == "op"


def test_a_reference_that_is_none_is_written_with_two_dollars() -> None:
    parsed = parse(with_database(airflow={"core.x": "a$${B}c${D}$e$$"}), {"D": "d"})
    assert parsed.airflow["core.x"] == "a${B}cd$e$$"
    message = refused(with_database(airflow={"core.x": "${B}"}))
    assert "B, which is not set; where the text ${B} itself is meant, write $${B}" in message


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_every_spelling_of_a_postgresql_url_is_understood(scheme: str) -> None:
    assert (
        parse({"database": {"connection_string": URL.replace("postgresql", scheme)}}).connection_string == URL
    )


def test_secrets_stay_out_of_settings_and_repr() -> None:
    parsed = parse(with_database(airflow={"smtp.smtp_password": PASSWORD}, keys={"fernet_key": PASSWORD}))
    assert PASSWORD not in repr(parsed)
    assert PASSWORD not in json.dumps(parsed.to_settings())


def test_tokens_for_the_images_build_stay_out_of_settings() -> None:
    image = {
        "pip": ["--extra-index-url", "https://u:${TOKEN}@example.com/simple"],
        "env": {"PIP_INDEX_URL": "https://${TOKEN}@example.com"},
    }
    parsed = parse(with_database(image=image), {"TOKEN": PASSWORD})
    assert PASSWORD in parsed.image.pip[1] and PASSWORD in parsed.image.env["PIP_INDEX_URL"]
    assert PASSWORD not in json.dumps(parsed.to_settings())


def test_settings_are_read_back() -> None:
    image = {"base": "airflow:1", "secrets": ["b"]}
    parsed = parse(with_database(workers={"gpu": {"gpu": "T4", "secrets": ["a"]}}, image=image))
    again = EnvironmentConfig.from_settings(json.loads(json.dumps(parsed.to_settings())))
    assert (again.scheduler, again.executor, again.workers, again.image) == (
        parsed.scheduler,
        parsed.executor,
        parsed.workers,
        parsed.image,
    )


def test_settings_of_a_later_release_are_read_as_far_as_they_are_known() -> None:
    parsed = parse(with_database())
    settings = json.loads(json.dumps(parsed.to_settings()))
    settings["later"] = {"a": 1}
    for section in (settings["scheduler"], settings["executor"], settings["workers"]["default"]):
        section["later"] = 1
    settings["image"]["later"] = ["x"]
    again = EnvironmentConfig.from_settings(settings)
    assert (again.scheduler, again.executor, again.workers) == (
        parsed.scheduler,
        parsed.executor,
        parsed.workers,
    )


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
options = [
    *[("scheduler", f.name) for f in fields(config.SchedulerConfig)],
    *[("executor", name) for name in ("parallelism", "task_timeout", "execution_api")],
    *[("image", name) for name in ("base", "apt", "pip", "env", "secrets")],
    *[("workers", name) for name in ("default", "gpu", 8)],
    *[("airflow", name) for name in ("core.x", "x")],
    ("keys", "fernet_key"),
    ("database", "connection_string"),
]


@given(st.sampled_from(options), yaml_values)
def test_whatever_a_value_is_it_is_used_or_refused_with_a_sentence(
    option: tuple[str, str | int], value: Any
) -> None:
    section, name = option
    data = with_database(**{section: {name: value}})
    try:
        parsed = parse(data)
    except ConfigError as error:
        assert str(name) in str(error)
    else:
        json.dumps(parsed.to_settings(), allow_nan=False)


@given(yaml_values)
def test_whatever_the_file_holds_it_is_used_or_refused(data: Any) -> None:
    with pytest.raises(ConfigError):
        parse(data)


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(with_database(scheduler={"interval_seconds": 30})))
    assert config.load(path).scheduler.interval_seconds == 30


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist"):
        config.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"database:\n  connection_string: '{PASSWORD}\n".encode(), "not valid YAML at line"),
        (f"database: {{connection_string: {PASSWORD}\n".encode(), "not valid YAML at line"),
        (f"a: b: {PASSWORD}".encode(), "not valid YAML at line 1"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (f"!!python/object:os.system {PASSWORD}".encode(), "not valid YAML"),
        (f"&x {PASSWORD}\n--- *y".encode(), "not valid YAML"),
        (f"a: 1\nb: \x01{PASSWORD}".encode(), "not valid YAML"),
        (f"x: {'[' * 5000} {PASSWORD}".encode(), "not valid YAML"),
        (f"? {{a: {PASSWORD}}}\n: 1".encode(), "not valid YAML"),
        (b"x: 2025-13-45", "not valid YAML"),
        (f"x: *{PASSWORD}".encode(), "not valid YAML at line 1"),
        (f"x: !{PASSWORD} 1".encode(), "not valid YAML at line 1"),
        (f'x: "\\{PASSWORD}"'.encode(), "not valid YAML at line 1"),
        (b"", "expected sections such as 'database:', found nothing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_not_configuration_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    message = str(caught.value)
    assert says in message
    assert PASSWORD not in message
    assert len(message.splitlines()) == 1


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        config.load(tmp_path)


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"database: {{connection_string: '{URL}'}}\nexecutor: {{parallelism: 1, parallelism: 2}}\n"
    )
    with pytest.raises(ConfigError, match="line 2, column 28: key parallelism is given twice"):
        config.load(path)


def test_merged_keys_of_yaml_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"database: {{connection_string: '{URL}'}}\n"
        "workers: {default: &small {cpu: 1, memory: 512}, big: {<<: *small, memory: 4096}}\n"
        "image: {env: &deep {<<: &deeper {A: 1}, A: 2}}\n"
    )
    workers = config.load(path).workers
    assert (workers["big"].cpu, workers["big"].memory) == (1, 4096)
