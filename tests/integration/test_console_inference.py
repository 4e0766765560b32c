"""Inference by the Open Inference Protocol v2 over a real socket: good requests, and every kind of bad one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from edged.console.tensors import body_limit
from edged.domain import FrameId, Kind
from edged.errors import EngineError, NotOpen, StoreError
from edged.ports import Ended, TensorSpec
from edged.status import Status
from tests.support.console import LiveConsole, MemoryInlet, PlainModel, failed, live_console, raw_exchange

INFER = "/v2/models/digits/infer"
STATUS = Status(device="bench", version="0", state="ready")


@pytest.fixture(scope="module")
def shared_inlet() -> MemoryInlet:
    return MemoryInlet()


@pytest.fixture
def inlet(shared_inlet: MemoryInlet) -> MemoryInlet:
    shared_inlet.forget()
    return shared_inlet


@pytest.fixture(scope="module")
def shared_live(shared_inlet: MemoryInlet) -> Iterator[LiveConsole]:
    models = {
        "digits": PlainModel(),
        "deaf": PlainModel(name="deaf"),
        "gesture": PlainModel(name="gesture", inputs=(TensorSpec("spikes", "uint8", (2,), sequence=True),)),
    }
    with live_console(
        lambda: STATUS, models=models, inlets={"digits": shared_inlet, "gesture": shared_inlet}
    ) as console:
        yield console


@pytest.fixture
def live(shared_live: LiveConsole, inlet: MemoryInlet) -> LiveConsole:
    """The console of this file, with nothing stored yet."""
    return shared_live


def tensor(data: Any, shape: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": shape or [1, 2, 2], "datatype": "FP32", "data": data} | changes


def request(data: Any, shape: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(data, shape, **changes)]}


def test_one_frame_is_answered_with_its_receipt(live: LiveConsole, inlet: MemoryInlet) -> None:
    answer = live.client.post(INFER, json=request([0, 1, 0.5, 0.5]) | {"id": "frame-7"})
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "digits",
        "model_version": "1.0.0",
        "id": "frame-7",
        "parameters": {"epoch": "epoch-1", "stream": "digits", "seq": 1, "duplicate": False},
        "outputs": [
            {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["2"]},
            {"name": "index", "shape": [1], "datatype": "INT64", "data": [2]},
            {"name": "scores", "shape": [1, 3], "datatype": "FP32", "data": [0.25, 0.5, 2.0]},
        ],
    }
    assert inlet.seen["frame-7"].dtype == np.float32
    np.testing.assert_array_equal(inlet.seen["frame-7"], [[0, 1], [0.5, 0.5]])


def test_the_same_id_gets_the_first_result(live: LiveConsole) -> None:
    first = live.client.post(INFER, json=request([0, 0, 0, 1]) | {"id": "a"}).json()
    again = live.client.post(INFER, json=request([1, 1, 1, 1]) | {"id": "a"}).json()
    assert again["outputs"] == first["outputs"]
    assert again["parameters"] == first["parameters"] | {"duplicate": True}


def test_without_an_id_every_request_is_a_frame_of_its_own(live: LiveConsole) -> None:
    ids = [live.client.post(INFER, json=request([0, 0, 0, 1])).json()["id"] for _ in range(2)]
    assert len(set(ids)) == 2 and all(len(one) == 32 for one in ids)


@pytest.mark.parametrize(
    ("data", "shape"),
    [([0, 1, 0, 1], [2, 2]), ([[0, 1], [0, 1]], [2, 2]), ([[[0, 1], [0, 1]]], [1, 2, 2]), ([0, 1, 0, 1], [1, 2, 2])],
)
def test_a_frame_may_have_a_batch_axis_and_nesting(live: LiveConsole, data: Any, shape: list[int]) -> None:
    answer = live.client.post(INFER, json=request(data, shape))
    assert answer.json()["outputs"][1]["data"] == [2]


def test_several_rows_are_several_frames(live: LiveConsole, inlet: MemoryInlet) -> None:
    answer = live.client.post(INFER, json=request([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1], [3, 2, 2]) | {"id": "b"}).json()
    assert sorted(inlet.stored) == ["b#0", "b#1", "b#2"]
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["index"]["data"] == [0, 1, 2]
    assert outputs["scores"]["shape"] == [3, 3]
    assert outputs["seq"] == {"name": "seq", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}
    assert outputs["duplicate"]["data"] == [False, False, False]
    assert outputs["epoch"]["data"] == ["epoch-1"] * 3
    assert answer["parameters"] == {"stream": "digits", "rows": 3}


def test_only_the_outputs_asked_for_are_sent(live: LiveConsole) -> None:
    answer = live.client.post(INFER, json=request([0, 0, 0, 1]) | {"outputs": [{"name": "index"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["index"]


def test_a_sequence_carries_every_time_step(live: LiveConsole, inlet: MemoryInlet) -> None:
    body = {"inputs": [{"name": "spikes", "shape": [4, 2], "datatype": "UINT8", "data": [0, 1] * 4}], "id": "s"}
    assert live.client.post("/v2/models/gesture/infer", json=body).status_code == 200
    assert inlet.seen["s"].shape == (4, 2)
    assert inlet.seen["s"].dtype == np.uint8


def test_a_narrower_datatype_is_taken_as_it_is(live: LiveConsole, inlet: MemoryInlet) -> None:
    assert live.client.post(INFER, json=request([0, 1, 16, 255], datatype="UINT8") | {"id": "u"}).status_code == 200
    assert inlet.seen["u"].dtype == np.uint8


def test_metadata_describes_models(live: LiveConsole) -> None:
    assert live.client.get("/v2").json()["name"] == "edged"
    digits = live.client.get("/v2/models/digits").json()
    assert digits["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 2, 2]}]
    assert digits["outputs"][2] == {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
    gesture = live.client.get("/v2/models/gesture").json()
    assert gesture["inputs"] == [{"name": "spikes", "datatype": "UINT8", "shape": [-1, 4, 2]}]


BAD_BODIES: list[tuple[Any, str]] = [
    (b"", "not an inference request"),
    (b"{", "not an inference request"),
    (b"\xff\xfe", "not an inference request"),
    (b"[" * 50_000, "not an inference request"),
    (b'{"inputs": [{"name": "image", "shape": [2, 2], "datatype": "FP32", "data": [0, NaN, 0, 1]}]}', "not an inf"),
    (b'{"inputs": [{"name": "image", "shape": [2, 2], "datatype": "FP32", "data": [1e999, 0, 0, 1]}]}', "not an array"),
    ([], "not an inference request"),
    ({}, "inputs"),
    ({"inputs": []}, "holds 0 inputs"),
    ({"inputs": [tensor([0, 0, 0, 1])] * 2}, "holds 2 inputs"),
    (request([0, 0, 0, 1], name="pixels"), "no input 'pixels'"),
    (request([0, 0, 0, 1], [4]), "has shape [4]; expected [2, 2] for one frame or [n, 2, 2]"),
    (request([0, 0, 0, 1], [1, 1, 2, 2]), "has shape"),
    (request([], [0, 2, 2]), "has shape"),
    (request([0] * 65 * 4, [65, 2, 2]), "at most 64"),
    (request([0, 0, 0, 1], [-1, 2, 2]), "has shape"),
    (request([0, 0, 0, 1], ["1", 2, 2]), "shape"),
    (request([0, 0, 0, 1], datatype="FP64"), "has datatype 'FP64'; expected FP32"),
    (request([0, 0, 0, 1], datatype="BYTES"), "has datatype 'BYTES'"),
    (request([0, 0, 0, 1], datatype="fp32"), "has datatype 'fp32'"),
    (request([0, 0, 1]), "holds 3 values"),
    (request([0, 0, 0, 0, 1]), "holds 5 values"),
    (request([[0, 0, 0, 1]], [2, 2]), "holds shape [1, 4]"),
    (request([[0, 0], [0]], [2, 2]), "flat or nested evenly"),
    (request([0, 0, 0, None]), "something else"),
    (request([0, 0, 0, "1"]), "something else"),
    (request([0, 0, 0, {}]), "something else"),
    (request([True, False, True, False]), "something else"),
    (request(7), "holds shape []"),
    (request([0, 0, 0, 1e39]), "must be finite"),
    (request([0, 0, 0, 256], datatype="UINT8"), "values must be 0 to 255"),
    (request([0, 0, 0, -1], datatype="UINT8"), "values must be 0 to 255"),
    (request([0, 0, 0, 0.5], datatype="UINT8"), "something else"),
    (request([0, 0, 0, 10**30]), "something else"),
    (request([0, 0, 0, 1]) | {"id": ""}, "id must be"),
    (request([0, 0, 0, 1]) | {"id": "x" * 201}, "id must be"),
    (request([0, 0, 0, 1]) | {"id": "a#0"}, "id must be"),
    (request([0, 0, 0, 1]) | {"id": "a\nb"}, "id must be"),
    (request([0, 0, 0, 1]) | {"id": 7}, "id"),
    (request([0, 0, 0, 1]) | {"outputs": [{"name": "logits"}]}, "no output 'logits'"),
]


@pytest.mark.parametrize(("body", "complaint"), BAD_BODIES)
def test_a_bad_request_says_what_is_wrong_and_reaches_nobody(
    live: LiveConsole, inlet: MemoryInlet, body: Any, complaint: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = live.client.post(INFER, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert complaint in answer.json()["error"]
    assert inlet.seen == {}


def test_unknown_and_deaf_models_are_named(live: LiveConsole) -> None:
    unknown = live.client.post("/v2/models/nope/infer", json=request([0, 0, 0, 1]))
    assert (unknown.status_code, unknown.json()["error"]) == (
        404,
        "there is no model 'nope'; models: deaf, digits, gesture",
    )
    deaf = live.client.post("/v2/models/deaf/infer", json=request([0, 0, 0, 1]))
    assert deaf.status_code == 404
    assert "no source of type 'http'" in deaf.json()["error"]
    assert live.client.get("/v2/models/nope").status_code == 404
    assert live.client.get("/v2/models/nope/ready").status_code == 404


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_only_json_is_read(live: LiveConsole, inlet: MemoryInlet, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = live.client.post(INFER, content=json.dumps(request([0, 0, 0, 1])), headers=headers)
    assert answer.status_code == 415
    assert inlet.seen == {}


def test_json_with_a_charset_is_json(live: LiveConsole) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert live.client.post(INFER, content=json.dumps(request([0, 0, 0, 1])), headers=headers).status_code == 200


def test_a_body_beyond_the_limit_is_refused_by_its_length(live: LiveConsole) -> None:
    limit = body_limit(PlainModel())
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {limit + 1}\r\n\r\n"
    )
    answer = raw_exchange(live.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert str(limit).encode() in answer


def test_a_body_beyond_the_limit_is_refused_while_it_is_read(live: LiveConsole, inlet: MemoryInlet) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 16_384

    answer = live.client.post(INFER, content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    fitting = json.dumps(request([0, 0, 0, 1])).encode().ljust(body_limit(PlainModel()))
    assert live.client.post(INFER, content=fitting, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (Ended(FrameId("http", "e"), None, None), 503, "stopping"),
        (Ended(FrameId("http", "e"), Kind.DROPPED, None), 503, "queue was full"),
        (failed("e", Kind.REJECTED, "rejected", "all pixels are blank"), 422, "all pixels are blank [rejected]"),
        (failed("e", Kind.ERROR, "engine-lost", "ended two workers"), 500, "ended two workers [engine-lost]"),
        (NotOpen("starting"), 503, "starting"),
        (StoreError("disk full"), 503, "could not be stored: disk full"),
        (EngineError("no plan"), 500, "no plan"),
    ],
)
def test_an_end_without_a_result_is_an_error(
    live: LiveConsole, inlet: MemoryInlet, end: Ended | Exception, code: int, words: str
) -> None:
    inlet.ends["e"] = end
    answer = live.client.post(INFER, json=request([0, 0, 0, 1]) | {"id": "e"})
    assert answer.status_code == code
    assert words in answer.json()["error"]
    assert answer.headers.get("retry-after") == ("1" if code == 503 else None)
    assert ("stored" in answer.json()) == ("[" in words)


def test_one_row_without_a_result_names_itself_and_the_others_stay_stored(
    live: LiveConsole, inlet: MemoryInlet
) -> None:
    inlet.ends["m#1"] = failed("m#1", Kind.REJECTED, "rejected", "blank")
    body = request([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1], [3, 2, 2]) | {"id": "m"}
    answer = live.client.post(INFER, json=body)
    assert (answer.status_code, answer.json()["error"]) == (422, "row 1: blank [rejected]")
    assert sorted(inlet.stored) == ["m#0", "m#2"]


def test_requests_are_answered_side_by_side(live: LiveConsole, inlet: MemoryInlet) -> None:
    barrier = threading.Barrier(4, timeout=10)
    answers: list[httpx.Response] = []

    async def together(_: str) -> None:
        await asyncio.get_running_loop().run_in_executor(None, barrier.wait)

    inlet.before = together

    def ask(index: int) -> None:
        body = request([0, 0, 0, index]) | {"id": f"p{index}"}
        answers.append(httpx.post(f"{live.url}{INFER}", json=body, timeout=10))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.json()["outputs"][1]["data"][0] for answer in answers) == [0, 1, 2, 3]
