"""What a server has done since its start, in numbers: RPCs by name, containers and inputs by function. `top`
shows them; rates are differences between two looks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from modal_proto import api_pb2 as api


class RpcCount:
    """The calls of one RPC. A class with slots: it is on the way of every request."""

    __slots__ = ("calls", "errors", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.seconds = 0.0
        """Time from request to answer, waiting included, summed up."""


@dataclass
class FunctionCount:
    """What happened to one function or variant, over all its deployments."""

    cold_starts: int = 0
    succeeded: int = 0
    failed: int = 0
    """Inputs that ended in an error, a timeout or a lost container."""
    cancelled: int = 0


@dataclass
class Stats:
    """The counters of one server."""

    rpcs: dict[str, RpcCount] = field(default_factory=lambda: defaultdict(RpcCount))
    functions: dict[str, FunctionCount] = field(default_factory=lambda: defaultdict(FunctionCount))
    """By the id of the function or variant."""

    def container_started(self, function_id: str) -> None:
        """A container's process is about to be made."""
        self.functions[function_id].cold_starts += 1

    def input_ended(self, function_id: str, status: int) -> None:
        """An input has its final result, of this `GenericResult.status`."""
        count = self.functions[function_id]
        if status == api.GenericResult.GENERIC_STATUS_SUCCESS:
            count.succeeded += 1
        elif status == api.GenericResult.GENERIC_STATUS_TERMINATED:
            count.cancelled += 1
        else:
            count.failed += 1

    def forget(self, function_id: str) -> None:
        """The function or variant is gone."""
        self.functions.pop(function_id, None)
