"""Web functions of every kind."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import modal

app = modal.App(os.environ.get("TEST_APP_NAME", "web"))
notes = modal.Dict.from_name("web-notes", create_if_missing=True)


def plain(text: str, status: int = 200) -> list[dict[str, Any]]:
    headers = [(b"Content-Type", b"text/plain"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": text.encode()},
    ]


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        scope["state"]["started"] = "yes"
        await notes.put.aio(f"{os.environ['MODAL_TASK_ID']}-lifespan", message["type"])
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """What the path says."""
    path = scope["path"]
    key = scope["query_string"].decode()
    if path == "/live":
        # Each part is sent only when the client has taken the one before.
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        for number in range(3):
            await send(
                {"type": "http.response.body", "body": f"data: {number}\n\n".encode(), "more_body": True}
            )
            while not await notes.contains.aio(f"{key}-{number}"):
                await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b"end"})
        return
    if path == "/endless":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (message := await receive())["type"] != "http.disconnect":
            pass
        await notes.put.aio(key, message["type"])
        return
    if path == "/die":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        while not await notes.contains.aio(key):
            await asyncio.sleep(0.02)
        os._exit(3)
    if path == "/die-once" and not await notes.contains.aio(key):
        await notes.put.aio(key, True)
        os._exit(3)
    if path == "/echo":
        await send({"type": "http.response.start", "status": 200})
        while (message := await receive())["type"] == "http.request":
            await send(
                {"type": "http.response.body", "body": message["body"], "more_body": message["more_body"]}
            )
            if not message["more_body"]:
                return
    if path == "/raise":
        raise LookupError("not in the app")
    while path == "/gate" and not await notes.contains.aio(key):
        await asyncio.sleep(0.02)
    if path == "/slow":
        await asyncio.sleep(float(key))
    if path == "/short":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"less"})
        return
    if path == "/large":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x" * int(key)})
        return
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            break
    body = b"".join(parts)
    seen = {
        "method": scope["method"],
        "path": path,
        "query": key,
        "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
        "client": scope["client"][0],
        "state": scope["state"],
        "size": len(body),
        "sum": sum(body) if len(body) < 100_000 else -1,
        "parts": len(parts),
        "task": os.environ["MODAL_TASK_ID"],
        "tag": os.environ.get("TAG", ""),
    }
    for message in plain(json.dumps(seen)):
        await send(message)


async def websocket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    protocol = scope["subprotocols"][-1] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": protocol, "headers": [(b"X-Served", b"yes")]})
    while (message := await receive())["type"] == "websocket.receive":
        if message["text"] == "close":
            await send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
            return
        if message["text"] == "die":
            os._exit(3)
        if message["text"] is not None:
            await send({"type": "websocket.send", "text": message["text"].upper()})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"][::-1]})
    await notes.put.aio(scope["query_string"].decode(), message["code"])


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await {"lifespan": lifespan, "http": http, "websocket": websocket}[scope["type"]](scope, receive, send)


tag = modal.Secret.from_dict({"TAG": os.environ.get("TAG", "")})


@app.function(secrets=[tag], timeout=60, max_containers=2)
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def web() -> Any:
    return asgi


@app.function(max_containers=1)
@modal.asgi_app(requires_proxy_auth=True)
def private() -> Any:
    return asgi


@app.function()
@modal.wsgi_app()
def old() -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = environ["wsgi.input"].read()
        start_response("201 Created", [("Content-Type", "text/plain"), ("X-Path", environ["PATH_INFO"])])
        yield environ["REQUEST_METHOD"].encode() + b" "
        yield body[::-1]

    return application


@app.function()
@modal.fastapi_endpoint(method="POST", docs=True)
def add(first: int, second: int) -> dict[str, int]:
    return {"sum": first + second}


@app.function(timeout=2)
@modal.asgi_app()
def slow() -> Any:
    return asgi
