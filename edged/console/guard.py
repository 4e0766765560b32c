"""Keeps web pages of strangers away from the console: DNS rebinding, cross-site requests, framing.

Rules: the Host header must name this machine's loopback (or an allowed name); an Origin, when there is one, must be
the console itself; whatever changes state must be ``application/json``, which a form cannot send; there is no CORS.
Every answer carries the headers that tell a browser to keep it to itself. Sources: RFC 9110 (421), W3C CSP 3.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edged.console.answers import error_answer

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
BODIES = ("application/json", "application/octet-stream")  # types that no form can send
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)


class Guard:
    """ASGI middleware that refuses what a foreign page could send, and marks every answer."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] = LOOPBACK) -> None:
        self._app = app
        self._allowed = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the protecting headers added to the answer."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(str(scope["method"]), Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, marked)
        else:
            await error_answer(*refusal)(scope, receive, marked)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "this console answers only under the names of its own device, such as 127.0.0.1 or localhost"
        origins = headers.getlist("origin")
        if origins and origins != [f"http://{hosts[0]}"]:
            return 403, "requests from another site's page are refused"
        if method not in SAFE_METHODS and _media_type(headers) not in BODIES:
            return 415, "the body must be sent with Content-Type: application/json"
        return None

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and match["name"].lower() in self._allowed


def _media_type(headers: Headers) -> str:
    values = headers.getlist("content-type")
    return values[0].partition(";")[0].strip().lower() if len(values) == 1 else ""
