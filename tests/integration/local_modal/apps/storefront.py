"""A FastAPI application. Without postponed annotations: FastAPI needs the types, which are local here."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import modal

app = modal.App("storefront")
notes = modal.Dict.from_name("web-notes", create_if_missing=True)


@app.function()
@modal.asgi_app()
def storefront() -> Any:
    """An application as people write them: a lifespan, middleware, streams, background work."""
    from fastapi import BackgroundTasks, FastAPI, Request
    from fastapi.responses import StreamingResponse
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> Any:
        api.state.opened = "opened"
        yield

    async def marked(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["X-Marked"] = "yes"
        return response

    api = FastAPI(lifespan=lifespan)
    api.add_middleware(BaseHTTPMiddleware, dispatch=marked)
    api.add_middleware(GZipMiddleware)

    @api.get("/rows")
    async def rows(request: Request, key: str) -> StreamingResponse:
        async def stream() -> Any:
            yield f"{request.app.state.opened}\n"
            while not await notes.contains.aio(key):
                await asyncio.sleep(0.02)
            yield "end\n"

        return StreamingResponse(stream(), media_type="application/x-ndjson")

    @api.post("/upload")
    async def upload(request: Request, background: BackgroundTasks, key: str) -> dict[str, int]:
        size = sum([len(part) async for part in request.stream()])

        async def afterwards() -> None:
            await asyncio.sleep(0.2)
            await notes.put.aio(key, size)

        background.add_task(afterwards)
        return {"size": size}

    return api
