"""A class with parameters and a web method. Without `from __future__ import annotations`: the SDK reads the
types of the parameters.
"""

from typing import Any

import modal

app = modal.App("shop")


@app.cls()
class Shop:
    town: str = modal.parameter()
    floor: int = modal.parameter(default=1)

    @modal.enter()
    def open(self) -> None:
        self.opened = f"{self.town}, floor {self.floor}"

    @modal.asgi_app()
    def stock(self) -> Any:
        async def shelves(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": f"{self.opened}: {scope['path']}".encode()})

        return shelves

    @modal.method()
    def count(self) -> int:
        return len(self.opened)
