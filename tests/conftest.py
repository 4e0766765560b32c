"""Options of the whole test run: what is slow, what only measures. Missing real parts: ``tests.support.parts``."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.support.parts import in_ci

# ONNX Runtime 1.32 reports home from Linux too unless it is told not to before its import. Tests need no network.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A busy machine is no defect: what takes too long is for pytest-timeout to say.
hypothesis.settings.register_profile("edged", deadline=None)
hypothesis.settings.load_profile("edged")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edged")
    group.addoption("--slow", action="store_true", help="run the tests marked slow too (CI always does)")
    group.addoption("--soak", action="store_true", help="run what torments for ten minutes, not for one")
    group.addoption("--vm", action="store_true", help="run the tests in virtual machines too")
    group.addoption("--bench", action="store_true", help="run the benchmarks: they print tables and never decide")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out = []
    if not (config.getoption("--slow") or in_ci()):
        leave_out.append("slow")
    if not config.getoption("--vm"):
        leave_out.append("vm")
    if not config.getoption("--bench"):
        leave_out.append("bench")
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return  # whoever names a mark or a test means it
    gone = [item for item in items if any(item.get_closest_marker(mark) for mark in leave_out)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]
