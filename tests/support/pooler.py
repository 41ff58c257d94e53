"""A connection pooler in transaction mode, as small as can be: one session, lent per transaction."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from urllib.parse import unquote, urlsplit

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE


class TransactionPooler:
    """Speaks just enough of PostgreSQL's protocol for simple queries with one column of text.

    Clients come in without a password; all their statements run in the one session of the server behind.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = psycopg2.connect(url)
        self._server.autocommit = True
        self._turn = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = (
            f"postgresql://{unquote(parts.username or '')}@127.0.0.1:{port}{parts.path}?sslmode=disable"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            (length,) = struct.unpack("!i", stream.read(4))
            stream.read(length - 4)
            invented = struct.pack("!ii", secrets.randbelow(2**31), secrets.randbelow(2**31))
            parameters = {
                "client_encoding": "UTF8",
                "server_version": "17.0",
                "standard_conforming_strings": "on",
            }
            client.sendall(
                _message(b"R", struct.pack("!i", 0))
                + b"".join(
                    _message(b"S", f"{name}\0{value}\0".encode()) for name, value in parameters.items()
                )
                + _message(b"K", invented)
                + _message(b"Z", b"I")
            )
            while kind := stream.read(1):
                (length,) = struct.unpack("!i", stream.read(4))
                body = stream.read(length - 4)
                if kind == b"X":
                    return
                assert kind == b"Q", kind
                client.sendall(self._answer(body.rstrip(b"\0").decode()) + _message(b"Z", b"I"))

    def _answer(self, statement: str) -> bytes:
        with self._turn, self._server.cursor() as cursor:
            cursor.execute(statement)
            assert self._server.info.transaction_status == TRANSACTION_STATUS_IDLE
            rows = cursor.fetchall() if cursor.description else None
            tag = _message(b"C", (cursor.statusmessage or "").encode() + b"\0")
            if rows is None:
                return tag
            assert cursor.description
            column = cursor.description[0]
            described = struct.pack("!h", 1) + column.name.encode() + b"\0"
            described += struct.pack("!ihihih", 0, 0, column.type_code, -1, -1, 0)
            data = b""
            for value, *_ in rows:
                text = (
                    {True: "t", False: "f"}.get(value, str(value)) if isinstance(value, bool) else str(value)
                )
                data += _message(b"D", struct.pack("!hi", 1, len(text.encode())) + text.encode())
            return _message(b"T", described) + data + tag


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body
