"""Runs the bench of the buffer; ``pytest --bench -s tests/bench/test_bench_buffer.py`` shows its tables."""

from __future__ import annotations

import pytest

from tests.bench import bench_buffer


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_print_what_the_buffer_costs() -> None:
    bench_buffer.bench_bytes()
    bench_buffer.bench_store()
    bench_buffer.bench_find()
    bench_buffer.bench_damage()
    bench_buffer.bench_slow_fsync()
