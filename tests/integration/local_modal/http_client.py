"""Requests to web functions as bytes on a connection, for what an ordinary client would tidy up."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

SECONDS = 60


def connection(url: str) -> http.client.HTTPConnection:
    """A connection to the address of `url`; its `close` ends it at once."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)


def ask(
    url: str,
    path: str = "/",
    *,
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own; no redirect is followed."""
    link = connection(url)
    try:
        link.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, bytes | None))
        response = link.getresponse()
        return response, response.read()
    finally:
        link.close()


def seen(url: str, path: str = "/", **how: Any) -> dict[str, Any]:
    """What the app saw of a request, as its default answer tells."""
    response, body = ask(url, path, **how)
    assert response.status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found
