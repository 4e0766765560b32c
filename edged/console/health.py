"""Readiness, decided from a Status: can this device infer and store right now?"""

from __future__ import annotations

from edged.status import Status


def is_ready(status: Status) -> bool:
    """True when frames are inferred and stored: all is well, or degraded with at least one pipeline at work."""
    if status.state == "ready":
        return True
    return status.state == "degraded" and _stores(status) and any(_at_work(status))


def model_is_ready(status: Status, name: str) -> bool:
    """True when a pipeline with this model infers and stores."""
    serving = [ready for pipeline, ready in _pipelines(status) if pipeline.partition("@")[0] == name]
    return status.state in ("ready", "degraded") and _stores(status) and any(serving)


def _at_work(status: Status) -> list[bool]:
    return [ready for _, ready in _pipelines(status)]


def _pipelines(status: Status) -> list[tuple[str, bool]]:
    """Each pipeline's model (name@version), and whether its engine is ready."""
    ready = {(engine.name, engine.model) for engine in status.engines if engine.state == "ready"}
    return [(pipeline.model, (pipeline.engine, pipeline.model) in ready) for pipeline in status.pipelines]


def _stores(status: Status) -> bool:
    return status.buffer is None or status.buffer.state == "ok"
