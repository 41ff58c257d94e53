"""The state directory: whose it is, what a killed server leaves in it, in which order its tables are read."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from local_modal.limits import RECORD, Limits
from local_modal.store import StateDirUnsafe, Store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_state_directory_is_closed_to_others(tmp_path: Path) -> None:
    for name in ("new", "empty", "used"):
        if name != "new":
            (tmp_path / name).mkdir(mode=0o755)
        if name == "used":
            (tmp_path / name / "lock").touch()
            (tmp_path / name / "token").touch()
        Store(tmp_path / name).close()
        assert mode(tmp_path / name) == 0o700


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter").touch()
    with pytest.raises(StateDirUnsafe, match=r"other files than a server's.*--state-dir"):
        Store(home)
    assert mode(home) == 0o755 and os.listdir(home) == ["letter"]


@pytest.mark.skipif(os.getuid() != 0, reason="root is needed to give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 1000, 1000)
    with pytest.raises(StateDirUnsafe, match="belongs to user 1000"):
        Store(tmp_path)


def test_tables_are_read_in_the_order_in_which_keys_came_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key, value in (("b", b"1"), ("a", b"2"), ("b", b"3"), ("c", b"4"), ("b", b"5")):
        store.put("inputs", key, value)
    assert list(store.load("inputs").items()) == [("b", b"5"), ("a", b"2"), ("c", b"4")]
    store.close()


@pytest.mark.parametrize("text", ["", '["/sys/fs/cg', "7", "[7]"])
def test_a_record_that_was_cut_off_keeps_no_server_from_starting(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / RECORD).write_text(text)
    with caplog.at_level(logging.WARNING):
        Limits(tmp_path).start(cgroups=False)
    assert RECORD in caplog.text and not (tmp_path / RECORD).exists()
