"""What does a database URL say, and which of its parts may never be shown?

URLs are cut as libpq cuts them (``conninfo_uri_parse_options`` in PostgreSQL's fe-connect.c): user and
password end at the first ``@``, if it comes before the first ``/``. ``urllib`` takes the last ``@``, and ends
at ``?`` and ``#`` first. Where the two differ, a piece of the password is taken for a host or a port, and
shown in messages; :func:`fault` refuses such URLs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

DEFAULT_PORT = "5432"
SHORTEST_PIECE = 3
"""Of a password that is cut wrongly: with shorter pieces masked nothing could be read any more."""

_SCHEME = re.compile(r"[A-Za-z0-9+]*://")
_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PARAMETER = re.compile(r"(?P<name>[A-Za-z_]+)=(?P<value>.*)")
_SECRET_PARAMETERS = ("password", "sslpassword")
_ENCODE = (
    "percent-encode what is special in user and password: '%' is %25, '@' is %40, ':' is %3A, '/' is %2F, "
    "'?' is %3F and '#' is %23"
)


@dataclass(frozen=True)
class _Cut:
    """A URL's parts as libpq sees them, still encoded."""

    user: str
    password: str = field(repr=False)
    hosts: str
    database: str
    parameters: tuple[str, ...] = field(repr=False)


def fault(url: str) -> str | None:
    """Return what is wrong with a URL, and what to do, without any part of it; None if nothing is."""
    cut = _cut(url)
    user_info = f"{cut.user}:{cut.password}"
    if any("@" in part for part in (cut.hosts, cut.database)) or any(c in user_info for c in "?#"):
        return f"its user or password has a character that ends it early: {_ENCODE}"
    if _BAD_ESCAPE.search(user_info):
        return f"its user or password has a '%' without two hexadecimal digits: {_ENCODE}"
    parameters = [_PARAMETER.fullmatch(parameter) for parameter in cut.parameters]
    if not all(parameters):
        return f"what follows its '?' is not name=value: if that is part of the password, {_ENCODE}"
    for host in cut.hosts.split(","):
        found = _HOST.fullmatch(host)
        port = found["port"] if found else None
        if found is None or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
            return f"its port is not a number from 1 to 65535: if that is part of the password, {_ENCODE}"
        named = any(parameter and parameter["name"] in ("host", "hostaddr") for parameter in parameters)
        if not found["name"] and not named:
            return "it names no host"
    return None


def host_of(url: str) -> str:
    """Return host and port of a database URL, for messages; several as they stand, separated by commas."""
    if fault(url) is not None:
        return "the database's host"
    hosts = []
    for host in _cut(url).hosts.split(","):
        found = _HOST.fullmatch(host)
        assert found is not None
        hosts.append(f"{found['name'] or 'localhost'}:{found['port'] or DEFAULT_PORT}")
    return ",".join(hosts)


def parameter_names(url: str) -> frozenset[str]:
    """Return which of libpq's parameters a URL sets after its ``?``."""
    return frozenset(parameter.partition("=")[0] for parameter in _cut(url).parameters)


def secret_parts(url: str) -> list[str]:
    """Return every text that may be a password of the URL, or a piece of it, the longest first.

    Whichever way a library cuts the URL, what it shows of the password is among them.
    """
    cut = _cut(url)
    found = {cut.password}
    for parameter in cut.parameters:
        name, _, value = parameter.partition("=")
        if name in _SECRET_PARAMETERS:
            found.add(value)
    if fault(url) is not None:
        rest = url[_start(url) :]
        before_host = rest.rpartition("@")[0]
        secret = before_host.partition(":")[2]
        pieces = {secret, *re.split(r"[@/?#:,]", secret), *re.split(r"[/?#]", secret), *secret.split("@")}
        # What a library takes for the host is shown with what really is one.
        pieces |= {part.partition("@")[0] for part in (cut.hosts, cut.database) if "@" in part}
        found |= {piece for piece in pieces if len(piece) >= SHORTEST_PIECE}
    found |= {unquote(part) for part in found}
    return sorted(found - {""}, key=len, reverse=True)


def _cut(url: str) -> _Cut:
    rest = url[_start(url) :]
    end = re.search(r"[@/]", rest)
    user = password = ""
    if end is not None and end[0] == "@":
        user, _, password = rest[: end.start()].partition(":")
        rest = rest[end.end() :]
    address, _, query = rest.partition("?")
    hosts, _, database = address.partition("/")
    return _Cut(user, password, hosts, database, tuple(query.split("&")) if query else ())


def _start(url: str) -> int:
    scheme = _SCHEME.match(url)
    return scheme.end() if scheme else 0
