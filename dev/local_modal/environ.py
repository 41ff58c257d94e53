"""The environment variables of a container: a short allow list of the server's, then the image's, the
secrets', and Modal's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from local_modal.isolation import CERTIFICATES, Interpreter
from local_modal.rpc import CONTAINER_SECRET_HEADER, TASK_ID_HEADER

PASSED_ON = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", *CERTIFICATES)
"""All that a container gets from the server's environment."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Places:
    """Directories as the container sees them."""

    home: str
    tmp: str
    python_path: str
    arguments: str
    """The file with the serialized ContainerArguments."""


def interpreter_environ(interpreter: Interpreter) -> dict[str, str]:
    """What all containers of an interpreter have in common, and what an interpreter that becomes one of them
    must have had when it started.
    """
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environ["PATH"] = f"{os.path.dirname(interpreter.executable)}:{SYSTEM_PATH}"
    if interpreter.user_base:
        environ["PYTHONUSERBASE"] = interpreter.user_base
    environ["HOME"] = "/nonexistent"
    # Unbuffered, or output would arrive after the input that printed it.
    environ["PYTHONUNBUFFERED"] = "1"
    environ["MODAL_IS_REMOTE"] = "1"
    return environ


def container_environ(
    *,
    server_url: str,
    task_id: str,
    container_secret: str,
    image_id: str,
    environment: str,
    interpreter: Interpreter,
    image: Mapping[str, str],
    secrets: Mapping[str, str],
    places: Places,
) -> dict[str, str]:
    """Secrets override the image, Modal's own variables override both."""
    own = interpreter_environ(interpreter)
    environ = dict(own)
    environ["HOME"] = places.home
    if places.tmp != "/tmp":
        environ["TMPDIR"] = places.tmp
    environ.update(image)
    environ.update(secrets)
    extra_path = environ.get("PYTHONPATH")
    environ.update(
        {
            "MODAL_CONTAINER_ARGUMENTS_PATH": places.arguments,
            "MODAL_SERVER_URL": server_url,
            "MODAL_IS_REMOTE": own["MODAL_IS_REMOTE"],
            # The SDK adds them to every request; nothing else in it would tell one container from another.
            "MODAL_OVERRIDE_HEADERS": (
                f"{TASK_ID_HEADER}:{task_id},{CONTAINER_SECRET_HEADER}:{container_secret}"
            ),
            "MODAL_TASK_ID": task_id,
            "MODAL_IMAGE_ID": image_id,
            "MODAL_ENVIRONMENT": environment,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_LOCAL",
            "MODAL_REGION": "local",
            "MODAL_DISABLE_API_PROXY": "1",
            "PYTHONPATH": places.python_path + (f":{extra_path}" if extra_path else ""),
            "PYTHONUNBUFFERED": own["PYTHONUNBUFFERED"],
        }
    )
    return environ


def relocate(environ: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    """Replace paths in variables by where they really are: a value that is one of `moved`, or a path
    below it.
    """

    def where(value: str) -> str:
        for path, place in moved.items():
            if value == path or value.startswith(f"{path}/"):
                return place + value[len(path) :]
        return value

    return {name: where(value) for name, value in environ.items()}
