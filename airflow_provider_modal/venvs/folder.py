"""What does a virtualenv look like on local disk?

Like one of Python's own, so that ``python`` and the packages' commands work in what a task starts:

    pyvenv.cfg   bin/python -> the image's   bin/...   lib/python3.11/site-packages/

Interpreter and settings belong to the container and are made here; an archive holds the rest. Behind its own
packages it has those of the image, wherever these are.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

SETTINGS = "pyvenv.cfg"
BEHIND = "_image_packages.pth"
"""In ``site-packages``: adds the image's packages, which a virtualenv of a virtualenv would not find."""


def make(folder: Path) -> None:
    """Make an empty virtualenv in a folder, or what an unpacked archive lacks."""
    base = os.path.realpath(sys.executable)
    scripts, packages = folder / "bin", site_packages(folder)
    scripts.mkdir(parents=True, exist_ok=True)
    packages.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(
        f"home = {os.path.dirname(base)}\ninclude-system-site-packages = true\n"
        f"version = {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}\n"
        # Asks installers for commands that work wherever the folder is.
        "relocatable = true\n"
    )
    for name in ("python", "python3"):
        (scripts / name).symlink_to(base)
    behind = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_users()])
    (packages / BEHIND).write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in behind))


def python(folder: Path) -> Path:
    """Return the virtualenv's interpreter."""
    return folder / "bin" / "python"


def site_packages(folder: Path) -> Path:
    """Return where its packages are."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def is_of_container(path: str) -> bool:
    """Whether a path below the folder is made by :func:`make`, so that it is no part of an archive."""
    return path in (SETTINGS, "bin/python", "bin/python3") or path.endswith(f"/site-packages/{BEHIND}")


def _users() -> list[str]:
    return [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
