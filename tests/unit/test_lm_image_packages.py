"""What is read from a Dockerfile's lines, as the SDK and people write them."""

from __future__ import annotations

import asyncio
import sys

import pytest
from packaging.requirements import Requirement

from local_modal.images import dockerfile
from local_modal.images.interpreter import Distribution, Installed, probe
from local_modal.images.packages import installed_by

FILES = {
    "/.requirements.txt": (
        "# what it needs\n-r more.txt\n--extra-index-url https://example.invalid/simple\n"
        'rich[jupyter]==13.0 ; python_version >= "3.8"  # pretty\n'
        "pinned==1 \\\n    --hash=sha256:abc\n"
        "git+https://example.invalid/x.git@v1#egg=from-git\n-e ./here\n"
    ),
    "/more.txt": "attrs\n-r .requirements.txt\n",
    "/.uv/pyproject.toml": '[project]\ndependencies = ["httpx", "click>=8"]\n',
    "/tmp/poetry/pyproject.toml": (
        '[tool.poetry.dependencies]\npython = "^3.11"\nplain = "*"\ncaret = "^1.2"\nexact = ">=2,<3"\n'
        'left-out = {version = "1", optional = true}\n'
    ),
}


def _written(found: Requirement) -> str:
    extras = f"[{','.join(sorted(found.extras))}]" if found.extras else ""
    return f"{found.name}{extras}{found.specifier}"


def names(run: str) -> list[str]:
    return list(dict.fromkeys(_written(found) for found in installed_by(run, FILES.get)))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            "python -m pip install 'numpy>=1.20,<3' requests 'rich[jupyter]==13.0' --index-url https://x/s",
            ["numpy<3,>=1.20", "requests", "rich[jupyter]==13.0"],
        ),
        (
            "/.uv/uv pip install --python $(command -v python) --compile-bytecode requests "
            "'w @ https://example.invalid/w.whl'",
            ["requests", "w"],
        ),
        ("/.uv/uv sync --project=/.uv --no-install-workspace --frozen", ["httpx", "click>=8"]),
        (
            "cd /tmp/poetry && \\ \n  poetry config virtualenvs.create false && \\ \npoetry install",
            ["plain", "caret", "exact<3,>=2"],
        ),
        ("apt-get install -y git && pip3 install foo; echo done > log", ["foo"]),
        ("HTTPS_PROXY=x sudo pip install -q --no-cache-dir foo==1 | tee log", ["foo==1"]),
        ('["python3.12", "-m", "pip", "install", "foo"]', ["foo"]),
        ("pip install ./local https://example.invalid/x.tar.gz foo-1.2-py3-none-any.whl", ["foo==1.2"]),
        ("pip install bar==$VERSION", []),
        ("pip install --upgrade pip wheel uv", []),
        ("pip install --upgrade pip foo", ["pip", "foo"]),
        ("pip download foo && npm install bar", []),
        ("echo 'unbalanced", []),
        ("pip install -r /nowhere.txt", []),
    ],
)
def test_what_a_line_installs(run: str, expected: list[str]) -> None:
    [instruction] = dockerfile.instructions(["RUN " + run])
    assert names(instruction.rest) == expected


@pytest.mark.parametrize("option", ["-r /.requirements.txt", "--requirement=/.requirements.txt"])
def test_requirement_files(option: str) -> None:
    expected = ["attrs", "rich[jupyter]==13.0", "pinned==1", "from-git"]
    assert names(f"pip install {option}") == expected


INSTALLED = Installed(
    "/python",
    {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"},
    {
        "found-it": Distribution(
            "2.0", ('extra-part>=1 ; extra == "full"', "base-part", "not a requirement !")
        ),
        "pre": Distribution("1.0rc1", ()),
    },
)


@pytest.mark.parametrize(
    ("requirement", "lacking"),
    [
        ("Found_It", []),
        ("found.it>=1,<3", []),
        ("found-it>=3", ["found-it>=3 (found 2.0)"]),
        ("other", ["other"]),
        ("other ; sys_platform == 'win32'", []),
        ("pre>=0.9", []),
        ("found-it[full]", ["extra-part>=1"]),
    ],
)
def test_what_an_interpreter_lacks(requirement: str, lacking: list[str]) -> None:
    assert INSTALLED.lacking([Requirement(requirement)]) == lacking


def test_an_interpreter_tells_what_it_has() -> None:
    installed = asyncio.run(probe(sys.executable))
    assert installed.python_version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert installed.lacking([Requirement("modal>=1"), Requirement("no-such-thing")]) == ["no-such-thing"]
    with pytest.raises(ValueError, match="exit code 1"):
        asyncio.run(probe("/bin/false"))


@pytest.mark.parametrize(
    ("rest", "workdir", "expected"),
    [
        (". /", "/w", {"/a.txt": "/a.txt", "/d/b.txt": "/d/b.txt", "/d/e/c.py": "/d/e/c.py"}),
        ("a.txt /r.txt", "/", {"/r.txt": "/a.txt"}),
        ("a.txt /into/", "/", {"/into/a.txt": "/a.txt"}),
        ("a.txt ./", "/w", {"/w/a.txt": "/a.txt"}),
        ("d /x", "/", {"/x/b.txt": "/d/b.txt", "/x/e/c.py": "/d/e/c.py"}),
        ("--chown=me d/*.txt a.txt /x", "/", {"/x/b.txt": "/d/b.txt", "/x/a.txt": "/a.txt"}),
        ('["a.txt", "/with space"]', "/", {"/with space": "/a.txt"}),
    ],
)
def test_where_copied_files_land(rest: str, workdir: str, expected: dict[str, str]) -> None:
    copying = dockerfile.copy(rest)
    assert copying is not None
    assert dockerfile.copied(copying, ["/a.txt", "/d/b.txt", "/d/e/c.py"], workdir) == expected


def test_files_of_another_image_are_not_of_the_context() -> None:
    assert dockerfile.copy("--from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv") is None


def test_environment_lines() -> None:
    assert dockerfile.environment("A='b c' D=e") == {"A": "b c", "D": "e"}
    assert dockerfile.environment("OLD the whole rest") == {"OLD": "the whole rest"}
