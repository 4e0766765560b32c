"""The console: health, status, metrics, the page, and inference by the Open Inference Protocol v2, on loopback.

Everything shown comes from the one Status that ``status`` returns. An inference is answered after its result is
stored. Holds no state of its own but the bodies that are being read.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Collection, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import edged
from edged.console import contents, inference, metrics, page, server
from edged.console.answers import Refused, error_answer, json_answer
from edged.console.guard import LOOPBACK, Guard
from edged.console.health import is_ready, model_is_ready
from edged.console.tensors import body_limit
from edged.domain import Payload
from edged.errors import EdgedError, FrameRejected, NotOpen, StoreError
from edged.ports import Ended, Inlet, Model
from edged.status import Status

BODIES_BYTES = 32 * 1024 * 1024  # of all requests being read or parsed at once; beyond it they are told to come back


def _no_files(name: str, _: bytes) -> Payload:
    raise FrameRejected(f"{name}: this console takes no files")


class Console:
    """The HTTP side of the daemon. ``models`` and ``inlets`` are by model name; ``progress`` is the watchdog's.

    ``decode`` turns a file that a request holds into a payload, by the suffix of its name.
    """

    def __init__(
        self,
        *,
        status: Callable[[], Status],
        models: Mapping[str, Model],
        inlets: Mapping[str, Inlet],
        decode: contents.Decode = _no_files,
        progress: Callable[[], bool] = lambda: True,
        allowed_hosts: Collection[str] = LOOPBACK,
    ) -> None:
        self._status = status
        self._models = models
        self._inlets = inlets
        self._decode = decode
        self._progress = progress
        self._bodies_bytes = 0
        self.routes = self._routes()
        self.app: ASGIApp = Guard(_LastWords(_starlette(self.routes)), allowed_hosts)

    async def serve(self, sockets: Sequence[socket.socket], *, started: Callable[[], None] | None = None) -> None:
        """Answer on listening sockets until cancelled; then stop within a second, answers in flight included.

        Leaves signal handlers alone and closes the sockets. ``started`` is called once connections are accepted.
        """
        await server.serve(self.app, sockets, started)

    def _routes(self) -> list[Route]:
        return [
            Route("/", self._page),
            Route("/status.html", self._fragment),
            Route("/metrics", self._metrics),
            Route("/health", self._health),
            Route("/health/ready", self._ready),
            Route("/status", self._show_status),
            Route("/v2", self._server_metadata),
            Route("/v2/health/live", self._health),
            Route("/v2/health/ready", self._ready),
            Route("/v2/models/{name}", self._model_metadata),
            Route("/v2/models/{name}/ready", self._model_ready),
            Route("/v2/models/{name}/infer", self._infer, methods=["POST"]),
        ]

    # Health and facts

    async def _health(self, _: Request) -> Response:
        alive = self._progress()
        return json_answer({"live": alive}, 200 if alive else 503)

    async def _ready(self, _: Request) -> Response:
        status = self._status()
        ready = is_ready(status)
        return json_answer(
            {"ready": ready, "state": status.state, "reasons": status.reasons},
            200 if ready else 503,
        )

    async def _show_status(self, _: Request) -> Response:
        return json_answer(self._status())

    async def _metrics(self, _: Request) -> Response:
        return Response(metrics.render(self._status()), headers={"content-type": metrics.CONTENT_TYPE})

    async def _page(self, _: Request) -> Response:
        policy = {"content-security-policy": page.CONTENT_SECURITY_POLICY}
        return Response(page.render(self._status()), headers=policy, media_type="text/html")

    async def _fragment(self, _: Request) -> Response:
        return Response(page.fragment(self._status()), media_type="text/html")

    # Open Inference Protocol

    async def _server_metadata(self, _: Request) -> Response:
        return json_answer({"name": "edged", "version": edged.__version__, "extensions": []})

    async def _model_metadata(self, request: Request) -> Response:
        return json_answer(inference.metadata(self._model(request)))

    async def _model_ready(self, request: Request) -> Response:
        name = self._model(request).name
        ready = model_is_ready(self._status(), name)
        return json_answer({"name": name, "ready": ready}, 200 if ready else 503)

    async def _infer(self, request: Request) -> Response:
        model = self._model(request)
        inlet = self._inlets.get(model.name)
        if inlet is None:
            raise Refused(404, f"model {model.name} takes no requests: its pipeline has no source of type 'http'")
        job = await self._read_job(request, model)
        ends = await asyncio.gather(
            *(inlet.infer(key, frame) for key, frame in job.frames.items()), return_exceptions=True
        )
        return json_answer(inference.answer(job, model, [_ended(end) for end in ends]))

    def _model(self, request: Request) -> Model:
        name = request.path_params["name"]
        model = self._models.get(name)
        if model is None:
            raise Refused(404, f"there is no model {name!r}; models: {', '.join(sorted(self._models)) or 'none'}")
        return model

    async def _read_job(self, request: Request, model: Model) -> inference.Job:
        """Read and check a request, holding at most ``BODIES_BYTES`` for all requests together."""
        header_bytes = request.headers.get(contents.HEADER)
        limit = max(body_limit(model), contents.FILE_BYTES if header_bytes is not None else 0)
        too_large = Refused(413, f"the body is larger than {limit} bytes, the most that model {model.name} can need")
        if int(request.headers.get("content-length", "0")) > limit:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large
                if self._bodies_bytes + len(chunk) > BODIES_BYTES:
                    raise Refused(503, "too many large requests at once", retry=True)
                self._bodies_bytes += len(chunk)
                body += chunk
            parse = functools.partial(inference.parse, memoryview(body), header_bytes, model, self._decode)
            # Only what holds a file takes long enough to keep others waiting.
            return parse() if header_bytes is None else await asyncio.to_thread(parse)
        except ClientDisconnect:
            raise Refused(400, "the connection ended before the body did") from None
        finally:
            self._bodies_bytes -= len(body)


def _starlette(routes: list[Route]) -> Starlette:
    handlers = {Refused: _refused, HTTPException: _http_error, Exception: _internal_error}
    return Starlette(routes=routes, exception_handlers=handlers)


class _LastWords:
    """Answers a request that is cancelled because the console stops."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if begun:
                raise
            answer = error_answer(503, "the daemon is stopping; send it again with the same id", retry=True)
            await answer(scope, receive, send)


def _ended(end: Ended | BaseException) -> Ended:
    if isinstance(end, StoreError):
        raise Refused(503, f"the result could not be stored: {end}", retry=True) from end
    if isinstance(end, NotOpen):
        raise Refused(503, str(end), retry=True) from end
    if isinstance(end, EdgedError):
        raise Refused(500, str(end)) from end
    if isinstance(end, BaseException):
        raise end
    return end


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_answer(error.status, error.message, retry=error.retry, stored=error.stored)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail.lower()}"
    answer = error_answer(error.status_code, what)
    answer.headers.update(error.headers or {})
    return answer


async def _internal_error(_: Request, __: Exception) -> Response:
    return error_answer(500, "the console failed to answer; the daemon's log says why")
