"""The command `serve`: a server in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import shlex
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from local_modal.cli_common import PROGRAM, Raw, Refused, add_state_dir
from local_modal.clients import SERVER_FILE
from local_modal.fault_journal import read_plan
from local_modal.isolation import NO_NAMESPACES, NotIsolated, exposed_by
from local_modal.limits import NO_CGROUPS
from local_modal.quotas import Quotas
from local_modal.server import Options, Server
from local_modal.services.images import REFUSE, WARN
from local_modal.store import StateDirInUse, StateDirUnsafe

SERVE = f"""\
Start a server and stay in the foreground; stop it with Ctrl-C. When it is ready it prints one line of JSON:

  {{"server_url": ..., "http_url": ..., "pid": ..., "mode": "isolated" or "shared", "limits": ...,
   "state_dir": ..., "ca_file": ..., "seed": ...}}

Only clients with the server's token are served: the command `env` prints it, the file "token" in the state
directory has it.

Every web function has a port of its own on 127.0.0.1, the same after a redeployment or a restart. As in
Modal's cloud anybody who reaches it may call it, here: every user of this machine. With
requires_proxy_auth=True the header Modal-Key must be MODAL_TOKEN_ID and Modal-Secret be MODAL_TOKEN_SECRET,
as `env` prints them. Tunnels (modal.forward) have https URLs on 127.0.0.1, as Modal's have; clients must
trust the certificates in "ca_file".

"isolated": containers have a host name, pids, /tmp, a home directory and a file tree of their own (Linux
namespaces; root isn't needed). "shared": where namespaces are forbidden, or {NO_NAMESPACES}=1 is set, they
have directories of their own by environment variables only.

"limits" says how the limits of memory=(request, limit) and cpu=(request, limit) are enforced: "cgroup v1" or
"cgroup v2" by the kernel; "watched": memory by looking at it; "none". {NO_CGROUPS}=1 does without cgroups.
"""


def add_command(commands: Any) -> None:
    """Add `serve`."""
    serve = commands.add_parser("serve", help="start a server", description=SERVE, formatter_class=Raw)
    add_state_dir(serve)
    serve.add_argument(
        "--host", type=_loopback, default="127.0.0.1", help="loopback address (default: %(default)s)"
    )
    serve.add_argument("--port", type=int, default=0, help="gRPC port; 0, the default, takes a free one")
    serve.add_argument(
        "--max-containers", type=int, default=12, metavar="N",
        help="how many containers may run at the same time (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--python", default=os.environ.get("LOCAL_MODAL_PYTHON", sys.executable), metavar="PATH",
        help="interpreter that stands in for images; needs `modal` (default: LOCAL_MODAL_PYTHON, or the one "
        "that runs the server)",
    )  # fmt: skip
    serve.add_argument(
        "--image-python", action="append", default=[], metavar="GLOB=PATH",
        help="interpreter for images whose FROM matches, such as 'apache/airflow:2.*=/venvs/af2/bin/python'",
    )  # fmt: skip
    serve.add_argument(
        "--missing-packages", choices=(REFUSE, WARN), default=Options.missing_packages,
        help="what to do when an image installs packages that its interpreter lacks (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--stop-grace", type=float, default=Options.stop_grace, metavar="SECONDS",
        help="between SIGINT to a container that must end and SIGKILL (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--preemption-grace", type=float, default=Options.preemption_grace, metavar="SECONDS",
        help="the same for a container that is preempted (default: %(default)s, as at Modal)",
    )  # fmt: skip
    serve.add_argument(
        "--cancel-grace", type=float, default=Options.cancel_grace, metavar="SECONDS",
        help="between the cancel event for an input that took too long and SIGINT to its container "
        "(default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--cancel-limit", type=float, default=Options.cancel_limit, metavar="SECONDS",
        help="how long user code may ignore a cancel before its container is ended (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--require-isolation", action="store_true",
        help="refuse to start where containers can't be kept apart, or limited in memory and processor time, "
        "by the kernel",
    )  # fmt: skip
    serve.add_argument(
        "--web-timeout", type=float, default=Options.web_timeout, metavar="SECONDS",
        help="after which a web request without a response gets a 303 to a URL where it can be fetched "
        "(default: %(default)s, as in Modal's cloud)",
    )  # fmt: skip
    serve.add_argument(
        "--fresh-monotonic", action="store_true",
        help="let the monotonic clock of each container begin near zero, as on a machine just started",
    )  # fmt: skip
    serve.add_argument(
        "--no-zygote", action="store_true",
        help="start a new interpreter for every container instead of forking one that has imported `modal`",
    )  # fmt: skip
    serve.add_argument(
        "--share", action="append", type=Path, default=[], metavar="DIR",
        help="a directory of this machine that isolated containers see as well, writable (repeatable)",
    )  # fmt: skip
    serve.add_argument(
        "--seed", type=int, metavar="N",
        help="all chance of fault injection derives from it (default: at random, and printed)",
    )  # fmt: skip
    serve.add_argument(
        "--faults", type=Path, metavar="FILE",
        help="set faults from the start: a plan (YAML or JSON), or the faults.jsonl of a run to be repeated",
    )  # fmt: skip
    serve.add_argument(
        "--background-commits", type=float, default=Options.background_commits, metavar="SECONDS",
        help="between the commits of all mounted volumes, besides those that user code asks for; 0 for none, "
        "so that a container that is killed loses what it hasn't committed (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--copy-volumes", action="store_true",
        help="give each container copies of its volumes also where the kernel could share them (overlays)",
    )  # fmt: skip
    serve.add_argument(
        "--quota", action="append", default=[], metavar="NAME=VALUE",
        help="accept or keep less than Modal: " + ", ".join(each.name for each in fields(Quotas)),
    )  # fmt: skip
    serve.add_argument("--json", action="store_true", help="log in JSON lines")
    serve.add_argument("--verbose", action="store_true", help="log more")
    serve.set_defaults(command=_serve)


def _loopback(host: str) -> str:
    """The value of --host."""
    try:
        found = ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        found = None
    if found is None or not found.is_loopback:
        raise argparse.ArgumentTypeError(
            f"{host}: loopback only (127.0.0.1). The server runs any code that its clients send."
        )
    return str(found)


def _serve(arguments: argparse.Namespace) -> int:
    _configure_logging(arguments.json, arguments.verbose)
    pairs = []
    for text in arguments.image_python:
        pattern, separator, python = text.rpartition("=")
        if not separator:
            raise Refused(f"--image-python {text}: expected GLOB=PATH")
        pairs.append((pattern, python))
    plan = read_plan(arguments.faults) if arguments.faults else None
    try:
        quotas = Quotas.parse(arguments.quota)
    except ValueError as error:
        raise Refused(f"--quota {error}") from None
    for directory in arguments.share:
        if exposed_by(directory, arguments.state_dir):
            raise Refused(
                f"--share {directory}: containers would see the server's secrets in --state-dir "
                f"{arguments.state_dir}; share another directory."
            )
    options = Options(
        state_dir=arguments.state_dir,
        host=arguments.host,
        port=arguments.port,
        max_containers=arguments.max_containers,
        python=arguments.python,
        image_pythons=tuple(pairs),
        missing_packages=arguments.missing_packages,
        cancel_grace=arguments.cancel_grace,
        cancel_limit=arguments.cancel_limit,
        stop_grace=arguments.stop_grace,
        preemption_grace=arguments.preemption_grace,
        require_isolation=arguments.require_isolation,
        web_timeout=arguments.web_timeout,
        zygote=not arguments.no_zygote,
        fresh_monotonic=arguments.fresh_monotonic,
        share=tuple(directory.resolve() for directory in arguments.share),
        seed=plan.seed if plan and arguments.seed is None else arguments.seed,
        plan=plan,
        background_commits=arguments.background_commits,
        copy_volumes=arguments.copy_volumes,
        quotas=quotas,
    )
    asyncio.run(_run(options, quiet=arguments.json))
    return 0


async def _run(options: Options, quiet: bool) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    try:
        server = Server(options)
    except (StateDirInUse, StateDirUnsafe) as error:
        raise Refused(str(error)) from None
    except PermissionError as error:
        raise Refused(f"--state-dir {options.state_dir}: {error.strerror}") from None
    try:
        await server.start()
    except NotIsolated as error:
        raise Refused(str(error)) from None
    except (OSError, ValueError) as error:
        raise Refused(f"Could not start on {options.host}:{options.port}: {error}") from None
    ready = {
        "server_url": server.url,
        "http_url": server.http.address,
        "pid": os.getpid(),
        "mode": server.workers.isolation.mode,
        "limits": {"memory": server.workers.limits.memory, "cpu": server.workers.limits.cpu or "none"},
        "state_dir": str(server.state_dir),
        "ca_file": server.tunnels.ca_file,
        "seed": server.seed,
    }
    server_file = server.state_dir / SERVER_FILE
    partial = server_file.with_suffix(".partial")
    partial.write_text(json.dumps(ready))
    partial.rename(server_file)
    logging.getLogger("local_modal").info("%s", server.workers.isolation.describe())
    for phrase in server.workers.missing():
        logging.getLogger("local_modal").warning("Weaker than Modal: %s", phrase)
    for directory in options.share:
        logging.getLogger("local_modal").warning("Containers see %s of this machine (--share)", directory)
    if not quiet:
        print(_welcome(server), file=sys.stderr)
    print(json.dumps(ready), flush=True)
    await stop.wait()
    server_file.unlink(missing_ok=True)
    await server.stop()


def _welcome(server: Server) -> str:
    """For people; programs read the line of JSON."""
    directory = shlex.quote(str(server.state_dir))
    return f"""
local Modal at {server.url} ({server.workers.isolation.mode}), state in {server.state_dir}, seed {server.seed}
  use it:     eval "$({PROGRAM} env --state-dir {directory})"
  watch it:   {PROGRAM} top --state-dir {directory}
  disturb it: {PROGRAM} fault --help
"""


def _configure_logging(as_json: bool, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("local_modal").setLevel(logging.DEBUG if verbose else logging.INFO)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": record.created, "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)
