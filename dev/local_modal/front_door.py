"""What a web function's port answers: requests become function calls, their bodies and responses are
streamed, a request that takes long is sent on to a URL where its result can be fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web
from modal_proto import api_pb2 as api
from multidict import CIMultiDict

from local_modal import asgi
from local_modal.clients import TOKEN_ID
from local_modal.rpc import RpcError
from local_modal.web_bodies import BodyTooLarge, ClientGone, pump_body
from local_modal.web_calls import WebCall, WebCallFailed
from local_modal.web_parameters import BadParameter, serialized_parameters
from local_modal.web_sockets import is_handshake, serve_websocket

if TYPE_CHECKING:
    from local_modal.server import Server

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**30
"""Modal's limit for the body of a request (its guide to web functions)."""
RESULT_PARAMETER = "__modal_function_call_id"
"""In the query of a result URL, as Modal's has it."""
RESULTS_KEPT = 1000
"""Long requests whose response nobody has fetched yet; the oldest go first."""
SERVED_BY = {"server": "modal-http"}
BODYLESS = frozenset({204, 304})


class FrontDoor:
    """The HTTP side of one web function or web method.

    Args:
        server: whose functions it calls.
        method_name: "" for functions.
        function_id: gives the function that is deployed now, or the class of the method.
    """

    def __init__(self, server: Server, method_name: str, function_id: Callable[[], str]) -> None:
        self._server = server
        self._method_name = method_name
        self._function_id = function_id
        self._long: OrderedDict[str, WebCall] = OrderedDict()
        """Calls whose clients have been sent to the result URL."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; for aiohttp's low-level server with `handler_cancellation`, which cancels it
        when the client is gone.
        """
        try:
            refusal = self._authorize(request)
            if refusal is not None:
                return refusal
            if RESULT_PARAMETER in request.query:
                return await self._result(request, request.query[RESULT_PARAMETER])
            if is_handshake(request):
                variant = self._variant(request)
                return await serve_websocket(
                    self._server, variant, self._method_name, request, self._deadline()
                )
            return await self._call(request)
        except RpcError:
            # Modal's words for an app that was stopped or isn't deployed.
            return _text(404, "modal-http: invalid function call")
        except BadParameter as error:
            return _text(400, f"modal-http: {error}")
        except ClientGone:
            return _abort(request)

    def _variant(self, request: web.BaseRequest) -> str:
        """The function to call: for a class with parameters the variant that the query asks for."""
        function_id = self._function_id()
        schema = self._server.functions.resolve(function_id).definition.class_parameter_info.schema
        if not self._method_name or not schema:
            return function_id
        parameters = serialized_parameters(schema, request.query)
        return self._server.functions.bind_for_web(function_id, parameters)

    def _config(self) -> api.WebhookConfig:
        definition = self._server.functions.resolve(self._function_id()).definition
        if self._method_name:
            return definition.method_definitions[self._method_name].webhook_config
        return definition.webhook_config

    def _authorize(self, request: web.BaseRequest) -> web.Response | None:
        if not self._config().requires_proxy_auth:
            return None
        key, secret = request.headers.get(asgi.KEY_HEADER), request.headers.get(asgi.SECRET_HEADER)
        if key is None or secret is None:
            return _text(401, "modal-http: missing credentials for proxy authorization")
        if key != TOKEN_ID or not self._server.access.is_token(secret):
            return _text(401, "modal-http: invalid credentials for proxy authorization")
        return None

    def _deadline(self) -> float:
        return self._server.clock.time() + self._server.options.web_timeout

    # -- requests

    async def _call(self, request: web.BaseRequest) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return _too_large()
        deadline = self._deadline()
        variant = self._variant(request)
        call = WebCall(self._server, variant, self._method_name, _scope(request))
        pump = asyncio.ensure_future(pump_body(request, call, MAX_BODY_BYTES))
        pump.add_done_callback(_seen)
        try:
            return await self._answer(request, call, deadline, pump)
        except (asyncio.CancelledError, ClientGone):
            call.leave(asgi.http_disconnect())
            raise
        finally:
            pump.cancel()

    async def _answer(
        self, request: web.BaseRequest, call: WebCall, deadline: float, pump: asyncio.Future[None]
    ) -> web.StreamResponse:
        started = asyncio.ensure_future(self._first(call, deadline))
        try:
            await asyncio.wait((started, pump), return_when=asyncio.FIRST_COMPLETED)
            if not started.done() and (error := pump.exception()) is not None:
                return self._upload_failed(call, error)
            message = await started
        except WebCallFailed as failure:
            return _text(500, str(failure))
        finally:
            started.cancel()
        if message is not None:
            return await self._respond(request, call, message)
        if pump.done():
            return self._redirect(request, call)
        call.leave(asgi.http_disconnect())
        return _text(408, "modal-http: the request took too long to arrive")

    async def _first(self, call: WebCall, deadline: float) -> api.Asgi | None:
        """The message that begins the response, or None if it isn't there in time.

        Raises:
            WebCallFailed: the call ended without.
        """
        if not await call.ready(deadline):
            return None
        return await self._start(call)

    async def _start(self, call: WebCall) -> api.Asgi:
        message = await call.receive()
        if message is not None and message.WhichOneof("type") == "http_response_start":
            return message
        found = "no response" if message is None else message.WhichOneof("type")
        raise WebCallFailed(
            api.GenericResult(
                status=api.GenericResult.GENERIC_STATUS_FAILURE,
                exception=f"the ASGI app began with {found} instead of http.response.start",
            )
        )

    @staticmethod
    def _upload_failed(call: WebCall, error: BaseException) -> web.StreamResponse:
        if isinstance(error, BodyTooLarge):
            call.leave(asgi.http_disconnect())
            response = _too_large()
            response.force_close()
            return response
        raise ClientGone from error

    async def _respond(self, request: web.BaseRequest, call: WebCall, start: api.Asgi) -> web.StreamResponse:
        """Stream a response that has begun; whatever breaks it breaks the connection, too, so that the client
        can't take it for complete.
        """
        head = start.http_response_start
        headers = CIMultiDict(asgi.response_headers(head.headers))
        headers.setdefault("server", SERVED_BY["server"])
        response = web.StreamResponse(status=head.status, headers=headers)
        expected = response.content_length
        empty = request.method == "HEAD" or head.status in BODYLESS
        written, complete = 0, False
        try:
            await response.prepare(request)
            while not complete:
                message = await call.receive()
                if message is None:
                    break
                if message.WhichOneof("type") != "http_response_body":
                    continue  # trailers, which the scope doesn't offer
                part = message.http_response_body
                written += len(part.body)
                if part.body and not empty:
                    await response.write(part.body)
                complete = not part.more_body
        except WebCallFailed as error:
            log.warning("A response of %s broke off: %s", request.path, error)
        except ConnectionError as error:
            raise ClientGone from error
        call.leave(asgi.http_disconnect())
        if not complete or (expected is not None and written != expected and not empty):
            return _abort(request, response)
        await response.write_eof()
        return response

    # -- long requests

    def _redirect(self, request: web.BaseRequest, call: WebCall) -> web.Response:
        """Documented in Modal's guide "Request timeouts": after 150 s a 303 to the original URL with a
        special query parameter; whoever gets that URL waits for the same response.
        """
        self._long[call.call_id] = call
        while len(self._long) > RESULTS_KEPT:
            self._long.popitem(last=False)[1].leave(asgi.http_disconnect())
        target = request.raw_path
        if RESULT_PARAMETER not in request.query:
            target += f"{'&' if '?' in target else '?'}{RESULT_PARAMETER}={call.call_id}"
        location = f"http://{request.host}{target}"
        return web.Response(status=303, headers={"location": location} | SERVED_BY)

    async def _result(self, request: web.BaseRequest, call_id: str) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return _text(400, "modal-http: bad redirect method")
        call = self._long.get(call_id)
        if call is not None and not await call.ready(self._deadline()):
            return self._redirect(request, call)
        # HTTP bodies are streams: of all who have waited only the first one gets the response.
        if call is None or self._long.pop(call_id, None) is None:
            return _text(408, "modal-http: Missing request, possibly due to expiry or cancellation")
        try:
            message = await self._start(call)
        except WebCallFailed as error:
            return _text(500, str(error))
        try:
            return await self._respond(request, call, message)
        except (asyncio.CancelledError, ClientGone):
            call.leave(asgi.http_disconnect())
            raise


def _scope(request: web.BaseRequest) -> dict[str, object]:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return asgi.scope(
        "http",
        scheme="http",
        method=request.method,
        target=request.raw_path,
        headers=request.raw_headers,
        client=(peer[0], peer[1]) if peer else ("127.0.0.1", 0),
        http_version=f"{request.version.major}.{request.version.minor}",
    )


def _seen(pump: asyncio.Future[None]) -> None:
    """A body that breaks off after its response has begun is nobody's error."""
    if not pump.cancelled():
        pump.exception()


def _text(status: int, sentence: str) -> web.Response:
    return web.Response(status=status, text=f"{sentence}\n", headers=SERVED_BY)


def _too_large() -> web.Response:
    return _text(413, f"modal-http: the request's body is larger than {MAX_BODY_BYTES} bytes")


def _abort(request: web.BaseRequest, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Cut the connection off without an orderly end."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response(status=499)
