from __future__ import annotations

import pytest

from airflow_provider_modal.errors import (
    ERRORS_BY_KIND,
    ConfigError,
    ModalflowError,
    NotFoundError,
    UnreachableError,
    kind_of,
)


def test_exit_codes_are_those_that_are_documented() -> None:
    codes = {ModalflowError: 1, ConfigError: 2, NotFoundError: 3, UnreachableError: 4}
    assert {cls: cls.exit_code for cls in codes} == codes


@pytest.mark.parametrize(("kind", "cls"), ERRORS_BY_KIND.items())
def test_a_kind_names_a_class_and_back(kind: str, cls: type[ModalflowError]) -> None:
    assert kind_of(cls("text")) == kind


def test_an_error_of_a_class_below_has_the_kind_of_its_base() -> None:
    class Missing(NotFoundError):
        pass

    class Odd(ModalflowError):
        pass

    assert kind_of(Missing("text")) == "not_found"
    assert kind_of(Odd("text")) == "failed"
