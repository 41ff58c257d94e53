"""How are packages installed into a folder? By uv, in two steps: resolve everything, install what is missing.

Resolved against the image (see ``image``); what it has in the very version is left out. The indexes are those
of uv's variables, and of pip's for people who have those in their Secrets already. Build scripts of source
distributions see those, too, but none of Airflow's or Modal's variables.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from airflow_provider_modal.container import processes
from airflow_provider_modal.errors import ModalflowError, UnreachableError
from airflow_provider_modal.venvs import folder, image
from airflow_provider_modal.venvs.redaction import redacted

log = logging.getLogger(__name__)

UV_OF_IMAGE_BUILD = Path("/.uv/uv")
"""Where Modal's ``Image.uv_pip_install`` puts uv into an image."""
LAST_LINES = 20
"""How many of uv's last lines the reason of a failure has."""

NO_INDEX = "UV_NO_INDEX"
"""Install from ``UV_FIND_LINKS`` alone. uv knows it as an option only, pip as a variable, too."""

_POLL = 0.1
_PIP_TO_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_NO_INDEX": NO_INDEX,
    "PIP_TRUSTED_HOST": "UV_INSECURE_HOST",
    "PIP_CERT": "SSL_CERT_FILE",
}
_OWN = ("AIRFLOW", "MODAL", "_AIRFLOW", "PYTHONPATH", "VIRTUAL_ENV")
_UNREACHABLE = re.compile(
    r"error sending request|dns error|tcp connect error|connection (?:refused|reset)|operation timed out"
    r"|HTTP status server error|network is unreachable",
    re.IGNORECASE,
)
_RESOLVED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;]+)")


class InstallError(ModalflowError):
    """The requirements can't be installed: they are the task's fault, or its author's to change."""


class IndexUnreachableError(UnreachableError):
    """The package index did not answer; another attempt may do better."""


class StoppedError(ModalflowError):
    """Nobody wants the result any more."""


@dataclass(frozen=True)
class Order:
    """What to install, and how long that may take.

    :param requirements: as ``requirements.normalised`` returns them.
    :param environ: variables of the process that installs; see :func:`environment`.
    :param ends: when it must be through, by the monotonic clock.
    :param stop: asked several times a second; True ends it.
    """

    requirements: tuple[str, ...]
    environ: Mapping[str, str]
    ends: float
    stop: Callable[[], bool] = lambda: False


def find_uv() -> str:
    """Return the path of uv.

    :raises InstallError: the image has none.
    """
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError, AttributeError):
        pass  # not the package, or one without the program
    found = shutil.which("uv") or (str(UV_OF_IMAGE_BUILD) if UV_OF_IMAGE_BUILD.is_file() else None)
    if found is None:
        raise InstallError(
            "the image has no uv to install requirements with; add uv to image.pip in config.yaml"
        )
    return found


def environment(environ: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Return the variables for uv: those of a process without Airflow's and Modal's, and pip's translated.

    :param cache: folder for uv's cache, on the file system of what it installs into.
    """
    own = {name: value for name, value in environ.items() if not name.startswith(_OWN)}
    for theirs, ours in _PIP_TO_UV.items():
        if own.get(theirs) and not (ours == "UV_DEFAULT_INDEX" and own.get("UV_INDEX_URL")):
            own.setdefault(ours, own[theirs])
    own.setdefault("UV_CACHE_DIR", str(cache))
    # The files never change once they are unpacked: nothing has to look at their times.
    own["PYC_INVALIDATION_MODE"] = "UNCHECKED_HASH"
    own["NO_COLOR"] = "1"
    own["UV_NO_PROGRESS"] = "1"
    own["UV_PYTHON_DOWNLOADS"] = "never"
    return own


def install(order: Order, target: Path) -> tuple[str, ...]:
    """Make a virtualenv in ``target``, an empty folder, and return what was installed: ``name==version``.

    :raises ConfigError: a requirement asks to replace what Airflow needs.
    :raises InstallError: they can't be had together, with Airflow, or at all.
    :raises IndexUnreachableError: the package index does not answer.
    :raises StoppedError: ``order.stop`` said so.
    """
    pinned = image.pins()
    image.check(order.requirements, pinned)
    uv = find_uv()
    folder.make(target)
    work = target / "build"
    work.mkdir()
    (work / "requirements.in").write_text("\n".join(order.requirements) + "\n")
    (work / "pins.txt").write_text(
        "".join(f"{name}=={version}\n" for name, version in sorted(pinned.items()))
    )
    options = ["--no-config", "--quiet"]
    if order.environ.get(NO_INDEX, "").lower() not in ("", "0", "false", "no"):
        options.append("--no-index")
    resolve = [
        "pip",
        "compile",
        "requirements.in",
        "--constraint",
        "pins.txt",
        "--output-file",
        "resolved.txt",
    ]
    resolve += ["--python", sys.executable, "--no-header", "--no-annotate", "--no-strip-markers"]
    _run([uv, *resolve, *options], order, work, pinned)
    missing = _missing((work / "resolved.txt").read_text(), image.installed())
    if missing:
        (work / "missing.txt").write_text("\n".join(missing) + "\n")
        put = ["pip", "install", "--requirement", "missing.txt", "--no-deps", "--compile-bytecode"]
        _run([uv, *put, "--python", str(folder.python(target)), *options], order, work, pinned)
    shutil.rmtree(work)
    (target / ".lock").unlink(missing_ok=True)  # uv's own
    return tuple(missing)


def _missing(resolved: str, installed: Mapping[str, str]) -> list[str]:
    """Return the lines of a resolution that the image does not satisfy already."""
    found = []
    for line in resolved.splitlines():
        match = _RESOLVED.match(line)
        if match and installed.get(canonicalize_name(match["name"])) == match["version"]:
            continue
        if line.strip() and not line.startswith("#"):
            found.append(line.strip())
    return found


def _run(command: Sequence[str], order: Order, work: Path, pinned: Mapping[str, str]) -> None:
    output = work / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=dict(order.environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _await(process, order)
        except BaseException:
            processes.kill_family(process.pid)
            process.wait()
            raise
    if code != 0:
        raise _failure(redacted(output.read_text(errors="replace"), order.environ), pinned)


def _await(process: subprocess.Popen[bytes], order: Order) -> int:
    started = time.monotonic()
    while True:
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            pass
        if order.stop():
            raise StoppedError("the installation was stopped")
        if time.monotonic() >= order.ends:
            raise InstallError(
                f"installing {_listed(order.requirements)} did not end within "
                f"{time.monotonic() - started:.0f} s; put large packages into the image (image.pip in "
                "config.yaml), or give the task a longer timeout"
            )


def _failure(output: str, pinned: Mapping[str, str]) -> ModalflowError:
    """Return what a failure of uv means."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()][-LAST_LINES:]
    said = "\n".join(lines) or "uv said nothing"
    if _UNREACHABLE.search(output):
        return IndexUnreachableError(f"the package index can't be reached: {said}")
    # Where the image's own versions are part of the reason, the resolver names them as we did.
    held = sorted({match["name"] for match in _RESOLVED.finditer(output) if _is_pinned(match, pinned)})
    if held:
        needs = ", ".join(f"{name} {pinned[canonicalize_name(name)]}" for name in held)
        return InstallError(
            f"the requirements can't be had together with Airflow, which in this image needs {needs}; choose "
            f"versions that work with that, or run the code in a PythonVirtualenvOperator: {said}"
        )
    return InstallError(
        "the requirements can't be installed; change them (executor_config or requirements.txt), or where "
        f"packages come from (UV_INDEX_URL in a Secret of the environment): {said}"
    )


def _is_pinned(match: re.Match[str], pinned: Mapping[str, str]) -> bool:
    return pinned.get(canonicalize_name(match["name"])) == match["version"].rstrip(".,")


def _listed(requirements: Sequence[str]) -> str:
    shown = ", ".join(requirements[:5])
    return shown + (f" and {len(requirements) - 5} more" if len(requirements) > 5 else "")
