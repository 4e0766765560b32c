"""What tests of the service's surroundings need: systemd-python, skipped by name where it is missing."""

from __future__ import annotations

import importlib

from tests.support.parts import missing


def need_systemd_python() -> None:
    """Skip the calling test without systemd-python; in CI fail it."""
    try:
        importlib.import_module("systemd.daemon")
    except ImportError:
        missing("systemd-python", "pip install edged[systemd]; it is built with libsystemd-dev")
