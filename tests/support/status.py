"""A Status in which every leaf has a value of its own, so that a surface that leaves one out is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edged.status import (
    BufferFacts,
    DecisionFacts,
    DeviceFacts,
    EngineFacts,
    GpuFacts,
    LatestResult,
    LinkFacts,
    LossFacts,
    MeasureFacts,
    ModelFacts,
    PipelineFacts,
    PressureFacts,
    SourceFacts,
    Status,
    StreamLinkFacts,
)

FULL = Status(
    device="field-017",
    version="0.1.9",
    state="degraded",
    reasons=("the worker of gestures ended", 'the <clock> & "time" aren\'t known'),
    pid=101,
    started_wall="2026-11-22T05:38:11Z",
    uptime_s=917.0,
    wall_time="2026-11-23T08:50:18Z",
    discovery="off: pyudev cannot be used",
    devices=(
        DeviceFacts(
            name="Edge TPU stick",
            kind="accelerator",
            state="in-use",
            reason="as 18d1:9302, it was 1a6e:089a",
            link="coral-1-2",
            id="18d1:9303",
            node="/dev/bus/usb/001/002",
            engine="edgetpu",
            user="pipeline gate",
            serial="SN-77",
            path="/devices/usb1/1-2",
        ),
    ),
    engines=(
        EngineFacts(
            name="onnxruntime",
            model="digits@1.0.0",
            state="ready",
            reason="recovered after a crash",
            version="1.32.7",
            plan="window-unrolled",
            pid=102,
            restarts=122,
            placement="serving",
            latency_us=316.0,
        ),
        EngineFacts(
            name="event",
            model="gestures@0.3.1",
            state="backoff",
            reason="next try in 32 s",
            version="0.0.4",
            plan="sparse",
            pid=104,
            restarts=105,
            placement="resting",
            latency_us=317.0,
        ),
    ),
    models=(
        ModelFacts(
            name="digits",
            version="1.0.0",
            digest="5f1c" * 16,
            timesteps=106,
            selftest="passed",
            slot="trial",
            signer="release-2026.pem",
            trial="4 of 10 results, 12 of 60 s",
            reason="checked today",
        ),
    ),
    pipelines=(
        PipelineFacts(
            name="digits-lane",
            model="digits@1.0.0",
            engine="onnxruntime",
            results=107,
            errors=108,
            queued=109,
            queue_limit=110,
            policy="drop-oldest",
            latency_p50_us=311.0,
            latency_p99_us=312.0,
            engine_p50_us=313.0,
            last_seq=111,
            share_percent=61.5,
            shed_by_pressure=134,
            sources=(
                SourceFacts(
                    name="inbox",
                    kind="spool",
                    received=512,
                    committed=212,
                    rejected=197,
                    dropped=103,
                    in_flight=115,
                    state="waiting",
                    reason="the folder is gone",
                    note="blocks lost on the line: 7",
                    losses=(LossFacts(what="samples in no window", count=138),),
                ),
            ),
            decisions=(
                DecisionFacts(
                    wall_time="2026-11-23T07:14:09Z",
                    engine="tensorrt",
                    act="serve",
                    reason="it may do better",
                ),
            ),
        ),
    ),
    pressure=PressureFacts(
        level="critical",
        reason="memory stall (system) 41.2 %",
        since="2026-11-19T21:11:09Z",
        changes=135,
        recycled=136,
        missing="pressure stall information is not available here",
        power_mode="MAXN_SUPER",
        cpu_cap_percent=72.5,
        triggers=137,
        look_us=318.0,
        measures=(
            MeasureFacts(
                name="temperature",
                where="soc-thermal",
                value=44.25,
                unit="°C",
                tight=11.5,
                critical=39.5,
                level="normal",
            ),
        ),
    ),
    gpus=(
        GpuFacts(
            id="0000:4c:00.0",
            name="Orin (nvgpu)",
            told_by="kernel, tensorrt-int8",
            load_percent=86.5,
            memory_used_bytes=139,
            memory_total_bytes=140,
            temperature_c=58.25,
            clock_mhz=918.5,
        ),
    ),
    buffer=BufferFacts(
        epoch="7d0f6a1e-3b0e-4a0a-9d0b-0c1f2e3d4a5b",
        state="failed",
        reason="the medium cannot be read",
        rows=116,
        segments=117,
        bytes=118,
        cap_bytes=119,
        unsent_rows=120,
        commit_p50_us=314.0,
        commit_p99_us=315.0,
    ),
    latest=(
        LatestResult(
            stream="digits-stream",
            seq=121,
            kind="result",
            source="camera",
            key="frame-0007.npy",
            label="seven",
            engine="lava",
            wall_time="2026-11-21T23:59:58Z",
            latency_us=316.0,
        ),
    ),
    link=LinkFacts(
        state="connecting",
        reason="the broker refused the password",
        broker="mqtt.example:8883",
        session="session-5",
        pid=123,
        wall_time="2026-11-20T01:02:03Z",
        connections=124,
        published_messages=125,
        published_rows=126,
        refused_messages=127,
        in_flight=128,
        backlog_rows=129,
        alarms=130,
        streams=(
            StreamLinkFacts(
                epoch="epoch-4",
                stream="link-stream",
                acked_seq=131,
                published_seq=132,
                stored_seq=133,
                state="held",
                reason="a row is too large",
            ),
        ),
    ),
)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a struct with its path, such as ``pipelines.sources.received``; a tuple's items share a path."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from leaves(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, tuple):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


def unset(value: Any, path: str = "") -> Iterator[str]:
    """Paths of fields that hold their default: nobody would notice if a surface left them out."""
    if isinstance(value, tuple):
        for item in value:
            yield from unset(item, path)
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            here = f"{path}.{field.name}" if path else field.name
            held = getattr(value, field.name)
            if not field.required and held == field.default:
                yield here
            yield from unset(held, here)
