"""The page in a real browser: the facts appear, stay current, survive silence, and fit a phone."""

from __future__ import annotations

import contextlib
import http.server
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from edged.status import Status
from tests.support.console import live_console
from tests.support.parts import program, require
from tests.support.status import FULL


@pytest.fixture(scope="module")
def chromium() -> str:
    require("chromium")
    found = program("chromium")
    assert found is not None
    return found


def browse(chromium: str, profile: Path, url: str, *options: str) -> tuple[str, str]:
    """Open a page as headless Chromium does; returns its standard output and its console's messages."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *options,
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    messages = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, messages


def dom(chromium: str, profile: Path, url: str, *options: str) -> tuple[str, str]:
    return browse(chromium, profile, url, "--dump-dom", *options)


@contextlib.contextmanager
def altered(url: str, edit: Callable[[str], str]) -> Iterator[str]:
    """The console behind a proxy that lifts its policy, so that a test's script may look inside.

    ``/`` is the page as ``edit`` changes it, ``/page`` the page as it is.
    """

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = httpx.get(url + self.path.replace("/page", "/"))
            text = edit(answer.text) if self.path == "/" else answer.text
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(5)


def counting() -> Callable[[], Status]:
    """A status whose uptime is the number of times that it was asked for."""
    asked = 0

    def status() -> Status:
        nonlocal asked
        asked += 1
        return msgspec.structs.replace(FULL, uptime_s=float(asked))

    return status


def test_the_facts_appear_and_stay_current(chromium: str, tmp_path: Path) -> None:
    with live_console(counting()) as live:
        document, messages = dom(chromium, tmp_path, live.url, "--virtual-time-budget=3500")
    assert "frame-0007.npy" in document and "mqtt.example:8883" in document
    shown = re.search(r"<dt>up</dt><dd>(\d+) s</dd>", document)
    assert shown is not None and int(shown[1]) >= 3
    assert "<title>field-017: degraded" in document
    assert messages == ""  # a policy that blocks our own style or script would say so here


def test_without_a_script_everything_is_there_once(chromium: str, tmp_path: Path) -> None:
    """The control of the test above: without the script the first rendering stays."""
    with (
        live_console(counting()) as live,
        altered(live.url, lambda document: re.sub(r"<script>.*</script>", "", document, flags=re.DOTALL)) as url,
    ):
        document, _ = dom(chromium, tmp_path, url, "--virtual-time-budget=3500")
    assert "<dt>up</dt><dd>1 s</dd>" in document
    assert "frame-0007.npy" in document


def test_only_what_changed_is_touched(chromium: str, tmp_path: Path) -> None:
    """Elements of the first rendering are still those of the page after updates, so selection and focus stay."""
    witness = """<script>
      const before = [...document.querySelectorAll("#facts *")];
      setTimeout(() => { document.body.dataset.kept = before.every((one) => one.isConnected); }, 2500);
    </script>"""
    with (
        live_console(counting()) as live,
        altered(live.url, lambda document: document.replace("</body>", f"{witness}</body>")) as url,
    ):
        document, _ = dom(chromium, tmp_path, url, "--virtual-time-budget=3500")
    assert 'data-kept="true"' in document
    assert "<dt>up</dt><dd>1 s</dd>" not in document


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_hangs_over_the_edge(chromium: str, tmp_path: Path, width: int) -> None:
    """In a frame, because a headless window is never narrower than 500 pixels."""
    frame = f"""<!doctype html><iframe src="/page" width="{width}" height="900" style="border: 0"></iframe><script>
      onload = () => {{
        const box = document.querySelector("iframe").contentDocument.documentElement;
        document.body.dataset.widths = `${{box.clientWidth}} ${{box.scrollWidth}}`;
      }};
    </script>"""
    long = msgspec.structs.replace(FULL, device="d" * 64, reasons=("r" * 300,))
    with live_console(lambda: long) as live, altered(live.url, lambda _: frame) as url:
        document, _ = dom(chromium, tmp_path, url, "--virtual-time-budget=500")
    assert f'data-widths="{width} {width}"' in document


def test_a_silent_daemon_is_said_on_the_page(chromium: str, tmp_path: Path) -> None:
    healthy = counting()

    def falling_silent() -> Status:
        status = healthy()
        if status.uptime_s > 1:
            raise RuntimeError("no answer")
        return status

    with live_console(falling_silent) as live:
        document, _ = dom(chromium, tmp_path, live.url, "--virtual-time-budget=2500")
    assert '<body class="silent">' in document
    assert "No answer from the daemon since" in document
    assert "frame-0007.npy" in document


def test_text_of_strangers_stays_text(chromium: str, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    status = msgspec.structs.replace(FULL, device=hostile, reasons=(hostile,))
    with live_console(lambda: status) as live:
        document, _ = dom(chromium, tmp_path, live.url, "--virtual-time-budget=2500")
    assert "<title>owned" not in document and "<img" not in document
    assert "&lt;img src=x" in document
