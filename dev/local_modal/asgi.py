"""ASGI as Modal's containers speak it: the scope of a request as the argument of a function call, the
messages of its connection as data chunks.

The shapes are those of the SDK (`modal/_serialization.py` and `modal/_runtime/asgi.py`): the scope travels
pickled, every message after it as an `Asgi` protobuf.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from modal_proto import api_pb2 as api

Headers = list[tuple[bytes, bytes]]

KEY_HEADER, SECRET_HEADER = "Modal-Key", "Modal-Secret"
"""The proxy auth token of a request."""

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""Headers that concern one connection only (RFC 9110, section 7.6.1); the front door makes its own."""
NOT_PASSED_ON = frozenset({b"x-forwarded-for", KEY_HEADER.lower().encode(), SECRET_HEADER.lower().encode()})
"""Modal drops what the client claims about itself (the SDK's comment in `_add_forwarded_for_header`). That it
keeps proxy auth tokens from user code is an assumption; here the secret would be the server's own token.
"""
PICKLE_PROTOCOL = 4
"""Read by every Python that an image can have."""


def scope(
    kind: str,
    *,
    scheme: str,
    method: str,
    target: str,
    headers: Iterable[tuple[bytes, bytes]],
    client: tuple[str, int],
    http_version: str,
    subprotocols: Sequence[str] = (),
) -> dict[str, Any]:
    """The ASGI scope of a request (`kind` "http") or a websocket handshake ("websocket").

    `target` is the request line's. Header names are in lower case as the specification asks. There is no
    `raw_path`: Modal's own message for a scope (`Asgi.Http`) has none either.
    """
    if not target.startswith("/"):  # the absolute form, as proxies send it, or the "*" of OPTIONS
        parts = urlsplit(target)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path, _, query = target.partition("?")
    made: dict[str, Any] = {
        "type": kind,
        "http_version": http_version,
        "scheme": scheme,
        "path": unquote(path),
        "query_string": query.encode(errors="surrogateescape"),
        "headers": _passed_on(headers, websocket=kind == "websocket"),
        "client": client,
    }
    if kind == "websocket":
        made["subprotocols"] = list(subprotocols)
    else:
        made["method"] = method
    return made


def _passed_on(headers: Iterable[tuple[bytes, bytes]], *, websocket: bool) -> Headers:
    dropped = NOT_PASSED_ON | HOP_BY_HOP
    lowered = [(name.lower(), value) for name, value in headers]
    return [
        (name, value)
        for name, value in lowered
        if name not in dropped and not (websocket and name.startswith(b"sec-websocket-"))
    ]


def call_input(made: dict[str, Any], method_name: str) -> api.FunctionInput:
    """The input of the function call that serves a scope; `method_name` is set for methods of classes."""
    return api.FunctionInput(
        args=pickle.dumps(((made,), {}), protocol=PICKLE_PROTOCOL),
        data_format=api.DATA_FORMAT_PICKLE,
        method_name=method_name,
    )


def response_headers(flat: Sequence[bytes]) -> list[tuple[str, str]]:
    """The headers of a response, from the message's flat list of names and values: duplicates and their order
    are kept, names in lower case as HTTP/2, which Modal serves, has them.
    """
    pairs = zip(flat[::2], flat[1::2], strict=False)
    return [
        (name.lower().decode("latin-1"), value.decode("latin-1"))
        for name, value in pairs
        if name.lower() not in HOP_BY_HOP
    ]


def body(data: bytes, more_body: bool) -> api.Asgi:
    """A part of the request's body."""
    return api.Asgi(http_request=api.Asgi.HttpRequest(body=data, more_body=more_body))


def http_disconnect() -> api.Asgi:
    """The client has gone, or has its whole response."""
    return api.Asgi(http_disconnect=api.Asgi.HttpDisconnect())


def websocket_connect() -> api.Asgi:
    """The client asks for a websocket."""
    return api.Asgi(websocket_connect=api.Asgi.WebsocketConnect())


def websocket_receive(data: str | bytes) -> api.Asgi:
    """The client has sent a message."""
    if isinstance(data, str):
        return api.Asgi(websocket_receive=api.Asgi.WebsocketReceive(text=data))
    return api.Asgi(websocket_receive=api.Asgi.WebsocketReceive(bytes=data))


def websocket_disconnect(code: int) -> api.Asgi:
    """The client has closed the websocket, or is gone."""
    return api.Asgi(websocket_disconnect=api.Asgi.WebsocketDisconnect(code=code))
