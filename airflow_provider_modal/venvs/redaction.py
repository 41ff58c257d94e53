"""How does no password get from an installer's environment into what is said about it?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^\s/@?#]*@")
_QUERY = re.compile(r"(?P<url>[A-Za-z][\w+.-]*://[^\s?#]+)\?[^\s#]*")
_OF_INDEX = re.compile(r"(?:UV|PIP)_.*(?:PASSWORD|TOKEN|USERNAME)|UV_PUBLISH.*|NETRC")
_LEAST = 4
"""Characters of a secret below which hiding it would only garble the text."""


def redacted(text: str, environ: Mapping[str, str]) -> str:
    """Return an installer's output without what could be secret in it.

    User, password and query of every URL; and wherever else they stand, passwords and tokens that
    ``environ`` has in URLs or in uv's and pip's variables for them.
    """
    hidden = sorted(_secrets(environ), key=len, reverse=True)
    for secret in hidden:
        text = text.replace(secret, "***")
    text = _USER_INFO.sub(r"\g<scheme>***@", text)
    return _QUERY.sub(r"\g<url>?***", text)


def _secrets(environ: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for name, value in environ.items():
        if not name.startswith(("UV_", "PIP_")):
            continue
        if _OF_INDEX.fullmatch(name):
            found.add(value)
        for word in value.split():
            # An index may be named: name=https://...
            url = word[word.find("=") + 1 :] if "://" in word.partition("=")[2] else word
            try:
                parts = urlsplit(url)
                values = [parts.username, parts.password, parts.query]
            except ValueError:
                values = [word]
            found.update(value for value in values if value)
    return {form for secret in found for form in (secret, unquote(secret)) if len(form) >= _LEAST}
