"""The models: their slots, their trials, and each configured engine with a golden frame."""

from __future__ import annotations

from collections.abc import Iterator

from edged.bundle.store.record import TRIAL_STARTS, Record
from edged.bundle.store.states import State
from edged.bundle.store.store import read_store
from edged.check import model
from edged.config import Pipeline
from edged.doctor.case import Case
from edged.doctor.findings import Finding, failed, not_applicable, ok, warning

BAD = (State.FAILED, State.ROLLED_BACK)


def slots(case: Case) -> Iterator[Finding]:
    """What is installed, what runs of it, and what was taken back."""
    if case.config.models.allow_unsigned:
        yield warning("models", "allow_unsigned is set: bundles without a signature are taken",
                      "for development only: remove it and trust a key (docs/models.md)")  # fmt: skip
    records, problems = read_store(case.config.device.models_dir)
    for name, problem in problems.items():
        yield failed("models", f"{name}: {problem}", "edged model install brings it anew")
    known = {record.name: record for record in records}
    for name in case.config.installed_models:
        if name not in problems and (name not in known or known[name].current is None):
            yield failed("models", f"{name} is not installed, or nothing of it may run",
                         f"edged model list; edged model install BUNDLE --trial brings {name}")  # fmt: skip
    for record in records:
        if record.current is not None:
            yield _slot(record)
    if not records and not problems and not case.config.installed_models:
        yield not_applicable("models", "none is installed; pipelines name bundle directories")


def _slot(record: Record) -> Finding:
    current = record.current
    assert current is not None
    seen = f"{record.name}@{current.version} {current.state.value}"
    off = [slot for slot in record.slots if slot.state in BAD and slot.release_counter > current.release_counter]
    if current.state is State.TRIAL and current.trial_starts > 1:
        return warning("models", f"{seen}, started {current.trial_starts} of {TRIAL_STARTS} times without an end",
                       "the daemon was restarted during the trial: see unit and workers")  # fmt: skip
    if off:
        reason = f"{off[-1].version} is {off[-1].state.value}: {off[-1].reason}"
        return warning("models", f"{seen}; the newer {reason}", "edged model list; give whoever made it the reason")
    return ok("models", seen)


def engines(case: Case) -> Iterator[Finding]:
    """Let each pipeline's model prove itself on each of its engines. One of several may be missing."""
    if not case.thorough:
        yield not_applicable("engines", "left out (--quick)")
        return
    for pipeline in case.config.pipeline:
        found = [(engine, *_proof(case, pipeline, engine)) for engine in pipeline.engines]
        runs = any(not problem for _, _, problem in found)
        for engine, seen, problem in found:
            what = f"pipeline {pipeline.name} on {engine}"
            if not problem:
                yield ok("engines", f"{what}: {seen}")
            elif runs:
                yield warning("engines", f"{what}: {problem}", "another engine has its work; edged engines says more")
            else:
                yield failed("engines", f"{what}: {problem}", "edged engines --prove says which engine can run what")


def _proof(case: Case, pipeline: Pipeline, engine: str) -> tuple[str, str]:
    """What was seen, and the problem. A device that the daemon works with is not taken from it."""
    held = case.status is not None and case.config.engines.device(engine) and any(
        one.name == engine and one.state == "ready" for one in case.status.engines)  # fmt: skip
    if held:
        return "it was proved when the daemon loaded it, and has its device", ""
    return "the golden frames are right", model(pipeline, engine, case.config).problem
