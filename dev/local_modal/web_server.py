"""`@modal.web_server` functions: user code listens on a port of its choice, and the SDK forwards to it from
within the container.

The SDK finds the address by asking for the interface `eth0` (`construct_webhook_callable` in its
`_runtime/user_code_imports.py`), and containers have no network of their own here, so that two of them would
listen on the same port.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
from collections.abc import Iterator

from grpclib.const import Status
from modal_proto import api_pb2 as api

from local_modal.rpc import RpcError

log = logging.getLogger(__name__)

INTERFACE = "eth0"
SIOCGIFADDR = 0x8915


def configs(definition: api.Function) -> Iterator[api.WebhookConfig]:
    """What a definition says of its web servers; more than one only for a class."""
    methods = (method.webhook_config for method in definition.method_definitions.values())
    for config in (definition.webhook_config, *methods):
        if config.type == api.WEBHOOK_TYPE_WEB_SERVER:
            yield config


def is_web_server(definition: api.Function) -> bool:
    """Whether containers of it listen on a fixed port."""
    return any(True for _ in configs(definition))


def check(definition: api.Function) -> None:
    """Refuse what could only hang later, and say what is different from the cloud.

    Raises:
        RpcError: INVALID_ARGUMENT, containers wouldn't find the interface.
    """
    for config in configs(definition):
        if not has_interface():
            raise RpcError(
                Status.INVALID_ARGUMENT,
                f"{definition.function_name}: @modal.web_server needs a network interface {INTERFACE} with "
                "an IPv4 address, because the SDK looks for it in the container, and this machine has none. "
                "Use @modal.asgi_app or @modal.wsgi_app, or make one: ip link add eth0 type dummy && "
                "ip address add 192.0.2.1/32 dev eth0 && ip link set eth0 up",
            )
        log.warning(
            "%s: containers share the machine's network, so only one at a time can listen on port %d: "
            "max_containers is 1, and nothing else may use that port. It must listen on 0.0.0.0, so others "
            "may reach it there without passing through the function's URL.",
            definition.function_name,
            config.web_server_port,
        )


def has_interface(name: str = INTERFACE) -> bool:
    """Whether the machine has an interface of that name with an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError:
            return False
    return True
