"""The command `fault`: disturb a running server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from local_modal.cli_common import Raw, add_state_dir
from local_modal.clients import Control
from local_modal.fault_journal import JOURNAL_FILE, read_plan
from local_modal.faults import EFFECTS, KINDS, LATE, LATENCY, LOSE, PRESETS, TWICE

DESCRIPTION = f"""\
Disturb a running server, to see how an application takes it.

Once:
  kill, preempt   a container gets a signal, or is taken away as Modal does when it needs the machine
  redeliver       a second container gets an input that still runs
  fire            call a function as its schedule does
  advance         put the server's clock forward: schedules, expiry, timeouts see the time pass at once
  expire          entries of a Dict are gone, as if their time were over
  pause           the server answers nothing for some seconds; with --containers they stand still, too

From now on, until it is cleared or has struck often or long enough:
  fail            RPCs end with a gRPC status instead of being executed
  stall           RPCs are never answered, until the client gives up
  late            RPCs are executed and answered after a delay
  twice           RPCs are executed twice, as when the SDK repeats one whose answer was lost;
                  --forget-key: even those that it marks as the same call
  lose            RPCs are executed, then their stream (--connection: the whole connection) breaks
  latency         everything takes longer, as over a wide area network
  queue-full      Queues answer that they are full           reload-refused  volumes have open files
  quota-inputs    the limit of pending inputs is reached     quota-containers  so is that of containers
  start-fails     containers can't be started                start-stalls    there is no capacity
  http-cut        blobs and volume blocks break off

  list, clear     the faults that were set, how often each has struck; end one or all
  replay FILE     set and do everything of a plan (YAML or JSON) or of another run's {JOURNAL_FILE}

Everything that happens is written to {JOURNAL_FILE} in the state directory. All chance derives from the
server's seed (`serve --seed`), so `serve --faults FILE` repeats a run. Examples:

  python -m local_modal fault fail --rpc FunctionPutInputs --status UNAVAILABLE --count 2
  python -m local_modal fault lose --rpc 'Queue*' --caller container --function 'work*' --probability 0.1
  python -m local_modal fault latency --delay 0.08 --jitter 0.02 --seconds 60
  python -m local_modal fault kill --function-name work

The same over HTTP, at the server's http_url, with "Authorization: Bearer $MODAL_TOKEN_SECRET":
  GET /control/tasks, GET|POST /control/faults, POST /control/<command> with the options as JSON.
"""
ACTIONS = {
    "kill": ("end containers with a signal", ("task_id", "function_name", "app_name", "count", "signal")),
    "preempt": ("take containers away as Modal does", ("task_id", "function_name", "app_name", "count")),
    "redeliver": ("give a running input to a second container", ("task_id", "function_name", "input_id")),
    "fire": ("call a function as its schedule does", ("function_name", "app_name", "environment")),
    "advance": ("put the server's clock forward", ("seconds",)),
    "expire": ("remove entries of a Dict", ("dict", "environment", "keys")),
    "pause": ("let the server answer nothing for a while", ("seconds", "containers")),
}
"""What happens once: its help, and its options."""
OPTIONS: dict[str, dict[str, Any]] = {
    "task_id": {"metavar": "TA", "help": "the container (ta-...)"},
    "function_name": {"metavar": "NAME", "help": "the function (whose containers are meant)"},
    "app_name": {"metavar": "NAME", "help": "only of this app"},
    "count": {"metavar": "N", "type": int, "help": "so many at most"},
    "signal": {"help": "default: SIGKILL"},
    "input_id": {"metavar": "IN", "help": "the input (in-...); else one that runs there"},
    "environment": {"metavar": "NAME", "help": "Modal environment (default: main)"},
    "dict": {"required": True, "metavar": "NAME", "help": "the Dict"},
    "keys": {"action": "append", "metavar": "KEY", "help": "only this entry; can be repeated"},
    "seconds": {"required": True, "type": float, "help": "how long"},
    "containers": {"action": "store_true", "help": "containers stand still as well"},
}
NARROWING: dict[str, dict[str, Any]] = {
    "rpc": {
        "metavar": "GLOB",
        "help": "RPC names such as 'Queue*', separated by commas; also 'HTTP PUT /blob/*' and START "
        "(of a container)",
    },
    "caller": {"choices": ("any", "client", "container"), "help": "who asks"},
    "function": {"metavar": "GLOB", "help": "the function whose container asks (or starts)"},
    "object": {"metavar": "GLOB", "help": "name or id of the Queue, Dict, function... it is about"},
    "probability": {"type": float, "metavar": "P", "help": "0 to 1 (default: 1)"},
    "count": {"type": int, "metavar": "N", "help": "strike N requests, then no more"},
    "after": {"type": int, "metavar": "N", "help": "let the first N requests of each name pass"},
    "seconds": {"type": float, "help": "in force for so long"},
    "limit": {"type": int, "metavar": "N", "help": "only while N inputs wait (containers run)"},
}
SHAPING: dict[str, dict[str, dict[str, Any]]] = {
    "fail": {"status": {"metavar": "STATUS", "help": "gRPC status (default: UNAVAILABLE)"}, "message": {}},
    LATE: {"delay": {"type": float, "required": True, "help": "seconds"}, "jitter": {"type": float}},
    LATENCY: {"delay": {"type": float, "required": True, "help": "seconds"}, "jitter": {"type": float}},
    TWICE: {"forget_key": {"action": "store_true", "help": "disregard the idempotency key"}},
    LOSE: {"connection": {"action": "store_true", "help": "break the connection, not one stream"}},
}
"""Options of an effect."""


def add_command(commands: Any) -> None:
    """Add `fault` with all its sub-commands."""
    fault = commands.add_parser(
        "fault", help="make containers die and requests fail", description=DESCRIPTION, formatter_class=Raw
    )
    faults = fault.add_subparsers(required=True, metavar="FAULT")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = faults.add_parser(name, help=text, description=f"{text}.")
        add_state_dir(parser)
        return parser

    add("tasks", "list live containers").set_defaults(command=lambda given: _show(given, "tasks"))
    add("list", "list faults").set_defaults(command=lambda given: _show(given, "faults"))
    clear = add("clear", "end one fault, or all")
    clear.add_argument("id", nargs="?", help="such as f1; without it: all")
    clear.set_defaults(command=lambda given: _do(given, "clear", ("id",)))
    replay = add("replay", "set and do everything of a plan or a journal")
    replay.add_argument("file", type=Path, help=f"YAML or JSON, or the {JOURNAL_FILE} of a run")
    replay.set_defaults(command=_replay)
    for name, (text, options) in ACTIONS.items():
        parser = add(name, text)
        _add_options(parser, {option: OPTIONS[option] for option in options})
        parser.set_defaults(command=lambda given, name=name, options=options: _do(given, name, options))
    for kind in KINDS:
        effect = PRESETS[kind]["effect"] if kind in PRESETS else kind
        parser = add(kind, EFFECTS[effect])
        settings = NARROWING | SHAPING.get(effect, {})
        _add_options(parser, settings)
        parser.set_defaults(command=lambda given, kind=kind, names=tuple(settings): _set(given, kind, names))


def _add_options(parser: argparse.ArgumentParser, options: dict[str, dict[str, Any]]) -> None:
    for name, settings in options.items():
        flag = "--key" if name == "keys" else f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, **settings)


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(arguments, name)) not in (None, False)}


def _show(arguments: argparse.Namespace, path: str) -> int:
    return _print(Control.of(arguments.state_dir).get(path))


def _do(arguments: argparse.Namespace, action: str, options: tuple[str, ...]) -> int:
    return _print(Control.of(arguments.state_dir).post(action, _given(arguments, options)))


def _set(arguments: argparse.Namespace, kind: str, options: tuple[str, ...]) -> int:
    return _print(
        Control.of(arguments.state_dir).post("faults", {"fault": kind, **_given(arguments, options)})
    )


def _replay(arguments: argparse.Namespace) -> int:
    plan = read_plan(arguments.file)
    return _print(Control.of(arguments.state_dir).post("replay", plan.to_json()))


def _print(reply: Any) -> int:
    print(json.dumps(reply, indent=2))
    return 0
