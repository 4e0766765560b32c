"""The two shapes of an answer: a JSON document, and the Open Inference Protocol's error object."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

RETRY_AFTER_S = 1  # a worker restarts and a queue drains in about a second


class Stored(msgspec.Struct, frozen=True):
    """Where a frame without a result is stored: it has ended, and sending it again changes nothing."""

    kind: str  # error or rejected
    code: str
    stream: str
    seq: int


class Refused(Exception):
    """A request that gets an error answer. ``retry``: the same request may succeed later."""

    def __init__(self, status: int, message: str, *, retry: bool = False, stored: Stored | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry = retry
        self.stored = stored


def json_answer(value: Any, status: int = 200) -> Response:
    """A struct, or plain data, as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def error_answer(status: int, message: str, *, retry: bool = False, stored: Stored | None = None) -> Response:
    """``{"error": message}``; with ``Retry-After`` where the same request may succeed later."""
    answer = json_answer({"error": message} | ({"stored": stored} if stored else {}), status)
    if retry:
        answer.headers["retry-after"] = str(RETRY_AFTER_S)
    return answer
