"""User code that listens on ports of its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import modal

PORT = int(os.environ.get("WEB_SERVER_PORT", "18080"))

app = modal.App(os.environ.get("TEST_APP_NAME", "ports"))
notes = modal.Dict.from_name("ports-notes", create_if_missing=True)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            f"{os.environ['MODAL_TASK_ID']} {self.path} {self.headers['X-Forwarded-For']}".encode()
        )


SETTINGS = {"WEB_SERVER_PORT": str(PORT), "EDITION": os.environ.get("EDITION", "1")}


@app.function(secrets=[modal.Secret.from_dict(SETTINGS)], min_containers=2)
@modal.concurrent(max_inputs=5)
@modal.web_server(PORT, startup_timeout=20)
def served() -> None:
    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def wait_for(key: str) -> None:
    while key not in notes:
        time.sleep(0.02)


def echo(listener: socket.socket) -> None:
    def serve(connection: socket.socket) -> None:
        while data := connection.recv(1000):
            connection.sendall(data.upper())
        connection.close()

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


@app.function(timeout=60)
def forwarded(key: str) -> None:
    """Has two tunnels until `key`-stop is noted, and goes on until `key`-exit is."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    with modal.forward(port, unencrypted=True) as tunnel:
        try:
            with modal.forward(port):
                refusal = ""
        except modal.exception.InvalidError as error:
            refusal = str(error)
        notes[key] = {
            "tls": tunnel.tls_socket,
            "tcp": tunnel.tcp_socket,
            "refusal": refusal,
            "task": os.environ["MODAL_TASK_ID"],
        }
        wait_for(f"{key}-stop")
    notes[f"{key}-stopped"] = True
    wait_for(f"{key}-exit")


@app.function(timeout=60)
def page(key: str) -> None:
    """An https page, as a tunnel's `url` promises."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with modal.forward(server.server_port) as tunnel:
        notes[key] = tunnel.url
        wait_for(f"{key}-stop")
