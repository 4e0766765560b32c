"""What a stranger's page could try against the console: DNS rebinding, cross-site requests, framing, sniffing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from edged.status import Status
from tests.support.console import LiveConsole, MemoryInlet, PlainModel, live_console, raw_exchange

INFER = "/v2/models/digits/infer"
BODY = json.dumps({"inputs": [{"name": "image", "shape": [2, 2], "datatype": "FP32", "data": [0, 0, 0, 1]}]}).encode()
PATHS = ["/", "/health", "/health/ready", "/status", "/metrics", "/v2", "/v2/models/digits", "/no/such/path"]


@pytest.fixture(scope="module")
def shared_inlet() -> MemoryInlet:
    return MemoryInlet()


@pytest.fixture
def inlet(shared_inlet: MemoryInlet) -> MemoryInlet:
    shared_inlet.forget()
    return shared_inlet


@pytest.fixture(scope="module")
def live(shared_inlet: MemoryInlet) -> Iterator[LiveConsole]:
    status = Status(device="bench", version="0", state="ready")
    with live_console(lambda: status, models={"digits": PlainModel()}, inlets={"digits": shared_inlet}) as console:
        yield console


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.1:8080", "[::1]:1"])
def test_its_own_names_are_answered(live: LiveConsole, host: str) -> None:
    assert live.client.get("/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",  # a name that was rebound to 127.0.0.1
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1 evil.example",
        "192.168.1.10",
        "0.0.0.0",
        "[::]",
        "localhost:",
        "localhost:80:80",
        "",
    ],
)
def test_a_rebound_name_learns_nothing(live: LiveConsole, host: str, path: str) -> None:
    answer = live.client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert set(answer.json()) == {"error"}


def test_a_request_without_or_with_two_hosts_is_refused(live: LiveConsole) -> None:
    assert raw_exchange(live.port, b"GET /status HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")
    two = b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw_exchange(live.port, two).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 421 "))


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1", "http://127.0.0.1:1", "http://localhost", "null", ""]
)
def test_a_foreign_origin_is_refused(live: LiveConsole, inlet: MemoryInlet, method: str, origin: str) -> None:
    headers = {"origin": origin, "content-type": "application/json"}
    answer = live.client.request(method, INFER if method == "POST" else "/status", content=BODY, headers=headers)
    assert answer.status_code == 403
    assert inlet.seen == {}


def test_its_own_origin_is_served(live: LiveConsole) -> None:
    headers = {"origin": live.url, "content-type": "application/json"}
    assert live.client.post(INFER, content=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""]
)
def test_a_form_of_another_site_cannot_infer(live: LiveConsole, inlet: MemoryInlet, content_type: str) -> None:
    """Forms send these types without a preflight, and old browsers without an Origin."""
    answer = live.client.post(INFER, content=BODY, headers={"content-type": content_type})
    assert answer.status_code == 415
    assert inlet.seen == {}


def test_a_preflight_gets_no_permission(live: LiveConsole) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = live.client.options(INFER, headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_marked_for_its_own_page_only(live: LiveConsole, path: str) -> None:
    for answer in (live.client.get(path), live.client.get(path, headers={"host": "evil.example"})):
        headers = answer.headers
        assert not [name for name in headers if name.startswith("access-control-")]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("path", ["/../etc/passwd", "/%2e%2e/etc/passwd", "/static/", "/page.css", "//evil.example/"])
def test_no_file_is_served_by_path(live: LiveConsole, path: str) -> None:
    answer = raw_exchange(live.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
