"""Is a password masked however a library cuts the URL that it is in?"""

from __future__ import annotations

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_modal.db.connect import connect, without_password
from airflow_provider_modal.db.url import fault, host_of, parameter_names
from airflow_provider_modal.errors import ConfigError

PIECES = ("Sec", "ret9")


@pytest.mark.parametrize("between", ["@", "/", "#", "?", "@/", ":/", "%", "%4", "//", "@@", ",", "=@"])
def test_no_piece_of_a_password_is_told_by_libpq_or_us(between: str) -> None:
    url = f"postgresql://u:Sec{between}ret9@127.0.0.1:1/db?connect_timeout=2"
    with pytest.raises(psycopg2.Error) as libpq:
        psycopg2.connect(url)
    told = [without_password(f"{libpq.value} in {url}", url), host_of(url), str(fault(url))]
    if fault(url) is not None:
        with pytest.raises(ConfigError) as refused:
            connect(url, application_name="test")
        told.append(str(refused.value))
    for text in told:
        assert not any(piece in text for piece in PIECES), text


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12))
def test_what_is_accepted_is_cut_where_libpq_cuts_it(password: str) -> None:
    url = f"postgresql://u:{password}@h:5/db"
    if fault(url) is None:
        parts = psycopg2.extensions.parse_dsn(url)
        assert (parts["host"], parts["port"], parts["dbname"]) == ("h", "5", "db")
        assert host_of(url) == "h:5"


def test_several_hosts_are_named() -> None:
    assert host_of("postgresql://u:p@h1:5432,h2/db") == "h1:5432,h2:5432"
    assert host_of("postgresql://u:p@[::1]/db") == "[::1]:5432"


def test_passwords_among_the_parameters_are_masked() -> None:
    url = "postgresql://h/db?user=u&password=Sec%21ret&sslmode=require"
    assert without_password(f"{url}; Sec!ret", url) == (
        "postgresql://h/db?user=u&password=***&sslmode=require; ***"
    )
    assert parameter_names(url) == {"user", "password", "sslmode"}
