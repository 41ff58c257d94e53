from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_modal.config import MAX_TASK_SECONDS
from airflow_provider_modal.errors import ConfigError
from airflow_provider_modal.executors import task_options
from airflow_provider_modal.executors.function_options import FunctionOptions
from airflow_provider_modal.executors.task_options import TaskOptions


def read(**options: Any) -> TaskOptions:
    return task_options.read({"modal": options})


@pytest.mark.parametrize(
    ("key", "value", "function"),
    [
        ("gpu", "H100", {"gpu": "H100"}),
        ("gpu", "a10g:2", {"gpu": "A10G:2"}),
        ("gpu", "A100-80GB", {"gpu": "A100-80GB"}),
        ("gpu", "H100!", {"gpu": "H100!"}),
        ("cpu", 2, {"cpu": 2}),
        ("cpu", 0.125, {"cpu": 0.125}),
        ("cpu", [1, 4.5], {"cpu": (1, 4.5)}),
        ("memory", 4096, {"memory": (4096, 4096)}),
        ("memory", [512, 1024], {"memory": (512, 1024)}),
        ("memory", (512, 512), {"memory": (512, 512)}),
        ("region", "us-east", {"region": ("us-east",)}),
        ("region", ["us-east", "eu"], {"region": ("us-east", "eu")}),
        ("cloud", "aws", {"cloud": "aws"}),
        ("secrets", ["a", "b"], {"secrets": ("a", "b")}),
    ],
)
def test_what_modal_is_told(key: str, value: Any, function: dict[str, Any]) -> None:
    assert read(**{key: value}) == TaskOptions(function=FunctionOptions(**function))


def test_what_the_worker_is_told() -> None:
    options = read(env={"A": "b"}, timeout=1.5, on_container_loss="rerun", log_lines=20)
    assert options == TaskOptions(env={"A": "b"}, timeout=1.5, on_container_loss="rerun", log_lines=20)
    assert not options.function
    asked = read(requirements=["NumPy>=1,<3", "pandas == 2.2.3", "numpy<3,>=1"]).requirements
    assert asked == ("numpy<3,>=1", "pandas==2.2.3")


@pytest.mark.parametrize(
    "executor_config",
    [None, {}, {"modal": None}, {"modal": {}}, {"modal": {"gpu": None}}, {"pod_override": object()}],
)
def test_nothing_asked_for_is_nothing_changed(executor_config: Any) -> None:
    assert task_options.read(executor_config) == TaskOptions()


def test_equal_wishes_are_one_variant() -> None:
    one, two = read(gpu="h100", memory=512, region="eu"), read(region=["eu"], memory=[512, 512], gpu="H100")
    assert hash(one.function) == hash(two.function) and one.function == two.function
    assert one.function.arguments() == {"gpu": "H100", "memory": (512, 512), "region": ["eu"]}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("gpu", 1, ["'H100' or 'A10G:2'", "found 1"]),
        ("gpu", "", ["found ''"]),
        ("gpu", "A10G:0", ["found 'A10G:0'"]),
        ("gpu", "A10G:two", ["'A10G:two'"]),
        ("gpu", ["H100", "A100"], ["list of alternatives only where a function is deployed"]),
        ("cpu", 0, ["cores greater than 0"]),
        ("cpu", True, ["found True"]),
        ("cpu", float("nan"), ["found nan"]),
        ("cpu", [2, 1], ["limit that is not below the request"]),
        ("cpu", [1], ["[request, limit]"]),
        ("cpu", 10**400, ["found 1000"]),
        ("memory", 0.5, ["whole number of MiB", "found 0.5"]),
        ("memory", -1, ["found -1"]),
        ("memory", [1024, 512], ["found [1024, 512]"]),
        ("memory", [1, "2"], ["found [1, '2']"]),
        ("memory", 2**40, ["found 1099511627776"]),
        ("region", [""], ["a list of regions"]),
        ("region", 5, ["found 5"]),
        ("cloud", ["aws"], ["cloud provider"]),
        ("secrets", "hf", ["a list of names", "found 'hf'"]),
        ("secrets", ["a\0"], ["control characters"]),
        ("env", ["A=b"], ["a dict of environment variables"]),
        ("timeout", 0, ["greater than 0", str(MAX_TASK_SECONDS)]),
        ("timeout", MAX_TASK_SECONDS + 1, ["at most"]),
        ("timeout", "1h", ["found '1h'"]),
        ("on_container_loss", "retry", ["'fail' or 'rerun'", "found 'retry'"]),
        ("on_container_loss", {}, ["found dict"]),
        ("log_lines", 101, ["from 0 to 100"]),
        ("log_lines", 1.5, ["whole number"]),
        ("requirements", "pandas", ["a list of requirements", "found 'pandas'"]),
        ("requirements", ["-r more.txt"], ["such as 'pandas==2.2.3'", "found '-r more.txt'"]),
        ("image", "x", ["image of config.yaml"]),
        ("retries", 3, ["belongs to the operator"]),
        ("max_containers", 3, ["property of a worker profile", "queue"]),
        ("memroy", 1, ["did you mean 'memory'?", "Known are: cloud, cpu, env"]),
        ("zzzz", 1, ["is not an option; Known are:"]),
    ],
)
def test_what_cannot_be_had_is_told(key: str, value: Any, told: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        read(**{key: value})
    text = str(raised.value)
    assert text.startswith(f"executor_config['modal']['{key}'] ")
    assert all(part in text for part in told), text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"A": 1}, "['A'] must be a text, found int"),
        ({"A": None}, "found NoneType"),
        ({"1A": "x"}, "['1A'] is not the name"),
        ({1: "x"}, "[1] is not the name"),
        ({"A": "x\0"}, "no environment variable can have"),
        ({"A": "\ud800"}, "no environment variable can have"),
        ({"MODAL_TASK_ID": "x"}, "can't be set for a task"),
        ({"AIRFLOW__CORE__HOSTNAME_CALLABLE": "x"}, "below airflow in config.yaml"),
    ],
)
def test_wrong_variables_are_told_without_their_values(env: Any, told: str) -> None:
    secret = {**env, "PASSWORD": "hunter2"}
    with pytest.raises(ConfigError) as raised:
        read(env=secret)
    assert told in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("value", [[], "gpu", 1])
def test_what_is_no_dict_is_told(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"found {type(value).__name__}"):
        task_options.read({"modal": value})
    with pytest.raises(ConfigError, match=f"found {type(value).__name__}"):
        task_options.read(value)


def test_keys_that_are_no_texts_are_told() -> None:
    with pytest.raises(ConfigError, match=r"\[1\] is not an option"):
        task_options.read({"modal": {1: 2}})
    with pytest.raises(ConfigError, match=r"\[object\] is not an option"):
        task_options.read({"modal": {object(): 2}})


def test_too_much_is_told() -> None:
    with pytest.raises(ConfigError, match=r"takes 40,\d\d\d bytes, at most 32,768"):
        read(env={"A": "x" * 40_000})
