"""edged in the guest, as its service: configured, asked, waited for. Judges nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tests.vm.machine import Guest

SPOOL = "/var/lib/edged/spool"
READY_S = 600.0  # emulated on busy cores
POLL_S = 2.0  # a look costs an emulated guest a tenth of that


class Service:
    """The daemon of a guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def configure(self, text: str) -> None:
        """Write its configuration; it is stopped afterwards."""
        self._guest.shell(f"systemctl stop edged.service; cat >/etc/edged/edged.toml <<'END'\n{text}\nEND\n")

    def state(self) -> str:
        """What systemd says of the unit."""
        return self._guest.start("systemctl", "is-active", "edged.service").wait(60).out.strip()

    def status(self) -> dict[str, Any]:
        """What the daemon last wrote of itself; empty before."""
        told = self._guest.shell("cat /run/edged/status.json 2>/dev/null || echo '{}'")
        facts: dict[str, Any] = json.loads(told)
        return facts

    def serving(self) -> str:
        """The engine that serves now; empty: none."""
        engines = self.status().get("engines", ())
        return next((engine["name"] for engine in engines if engine["placement"] == "serving"), "")

    def account(self, source: str) -> dict[str, int]:
        """The account of a source of the first pipeline."""
        pipelines = self.status().get("pipelines", ())
        found = [one for pipeline in pipelines for one in pipeline["sources"] if one["name"] == source]
        names = ("received", "committed", "rejected", "dropped")
        return {name: found[0][name] if found else 0 for name in names}

    def results(self) -> list[dict[str, Any]]:
        """Every stored row and gap, in order."""
        told = self._guest.run("edged", "results", "--json", "--limit", "100000")
        return [json.loads(line) for line in told.splitlines()]

    def wait(self, true: Callable[[], bool], timeout_s: float = READY_S) -> float:
        """Ask again and again; fails with what the service said when the time is over. Returns how long it took."""
        started = time.monotonic()
        while not true():
            assert time.monotonic() - started < timeout_s, self.journal()
            time.sleep(POLL_S)
        return time.monotonic() - started

    def wait_up(self) -> None:
        """Wait until the daemon of this boot tells its status, ready or not; /run is new after each boot."""
        self._guest.shell("until [ -s /run/edged/status.json ]; do sleep 1; done")

    def journal(self) -> str:
        """What the service and its workers said last."""
        return self._guest.shell("journalctl --no-pager -n 60 -o cat; cat /run/edged/status.json || true")
