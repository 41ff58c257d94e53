"""The server's own directory, with its token and secrets, isn't shown to containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_modal.isolation import Interpreter, exposed_by, state_binds

PYTHON = Interpreter("/venvs/image/bin/python", ("/venvs/image", "/usr"))


@pytest.mark.parametrize("state_dir", ["/opt/local-modal", "/etc/x/y", "/venvs/image/state"])
def test_it_is_hidden_where_containers_see_the_machine(state_dir: str) -> None:
    [bind] = state_binds(Path(state_dir), PYTHON, Path("/empty"))
    assert bind == {"target": state_dir, "source": "/empty", "read_only": True}


@pytest.mark.parametrize("state_dir", ["/home/me/state", "/var/lib/state", "/venvs/image-state"])
def test_elsewhere_nothing_is_needed(state_dir: str) -> None:
    assert state_binds(Path(state_dir), PYTHON, Path("/empty")) == []


def test_a_link_does_not_hide_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/opt")
    [bind] = state_binds(tmp_path / "link" / "state", PYTHON, Path("/empty"))
    assert bind["target"] == "/opt/state"


@pytest.mark.parametrize(("share", "exposed"), [("a", True), ("a/b", True), ("a/b/c", True), ("a/bb", False)])
def test_shares_that_would_show_it(tmp_path: Path, share: str, exposed: bool) -> None:
    assert exposed_by(tmp_path / share, tmp_path / "a" / "b") is exposed
