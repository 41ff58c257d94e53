"""Does the installed Airflow have the private names that the package relies on?"""

from __future__ import annotations

import ast
import importlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_modal
from tests.compat.private_names import NEEDED, USED_IF_THERE

# Before Airflow is imported: it writes its configuration file into its home.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="modalflow-compat-airflow-"))

PACKAGE = Path(airflow_provider_modal.__file__).parent


def _rows() -> Iterator[tuple[str, str, str]]:
    for table in (NEEDED, USED_IF_THERE):
        for where, users in table.items():
            for user, names in users.items():
                for name in names:
                    yield where, user, name


def _found(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("where", "user", "name"), sorted(_rows()))
def test_airflow_has_it_and_the_package_uses_it(where: str, user: str, name: str) -> None:
    assert name in (PACKAGE / user).read_text(), f"{user} no longer uses {name}: take it out of the table"
    assert hasattr(_found(where), name), f"{where} has no {name} in this Airflow; {user} relies on it"


def test_what_is_overridden_in_private_is_in_the_table() -> None:
    known = {name for _, _, name in _rows()}
    used = {
        name
        for path in PACKAGE.rglob("af3*.py")
        for name in re.findall(r"super\(\)\.(_[a-z]\w+)", path.read_text())
    }
    assert used and used <= known, f"not in the table: {sorted(used - known)}"


class _Imports(ast.NodeVisitor):
    """Collects what a file takes from Airflow; what it can do without, within ``try``, is left out."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()

    def visit_Try(self, node: ast.Try) -> None:
        for each in node.finalbody:
            self.visit(each)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.module.partition(".")[0] == "airflow":
            self.found.update((node.module, alias.name) for alias in node.names)


def test_all_that_is_imported_from_airflow_is_there() -> None:
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        imports = _Imports()
        imports.visit(ast.parse(path.read_text()))
        for module, name in sorted(imports.found):
            if not _is_there(module, name):
                missing.append(f"{path.relative_to(PACKAGE)}: {module}.{name}")
    assert not missing, "not in this Airflow:\n" + "\n".join(missing)


def _is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.import_module(f"{module}.{name}")
        )
    except ImportError:
        return False
