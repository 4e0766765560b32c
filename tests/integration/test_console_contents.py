"""Binary contents of requests: tensors as bytes, and files of the formats that the spool takes too."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from edged.console.contents import FILE_BYTES
from edged.domain import Kind
from edged.errors import NotOpen
from edged.ports import EventWindow, TensorSpec
from edged.status import Status
from tests.support.console import LiveConsole, MemoryInlet, PlainModel, failed, live_console
from tests.support.event_files import dat

INFER = "/v2/models/digits/infer"
WINDOW = EventWindow(304, 240, 1000, "first_event", "drop")
GESTURE = PlainModel(
    name="gesture", inputs=(TensorSpec("events", "float32", (2, 240, 304), sequence=True, events=WINDOW),)
)
FLAGS = PlainModel(name="flags", inputs=(TensorSpec("on", "bool", (4,)),))


@pytest.fixture(scope="module")
def inlets() -> dict[str, MemoryInlet]:
    return {name: MemoryInlet() for name in ("digits", "gesture", "flags")}


@pytest.fixture(scope="module")
def shared(inlets: dict[str, MemoryInlet]) -> Iterator[LiveConsole]:
    status = Status(device="bench", version="0", state="ready")
    models = {"digits": PlainModel(), "gesture": GESTURE, "flags": FLAGS}
    with live_console(lambda: status, models=models, inlets=inlets) as console:
        yield console


@pytest.fixture
def live(shared: LiveConsole, inlets: dict[str, MemoryInlet]) -> LiveConsole:
    for inlet in inlets.values():
        inlet.forget()
    return shared


def send(live: LiveConsole, tensor: dict[str, Any], binary: bytes, path: str = INFER, **headers: str) -> httpx.Response:
    text = json.dumps({"id": "a", "inputs": [tensor]}).encode()
    kind = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return live.client.post(path, content=text + binary, headers=kind | headers)


def tensor(
    size: int | None, shape: list[int], datatype: str = "FP32", name: str = "image", **more: str
) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size} | more}


def files(*contents: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in contents)


def test_a_tensor_may_travel_as_bytes(live: LiveConsole, inlets: dict[str, MemoryInlet]) -> None:
    values = np.array([[0, 1], [0.5, 0.5]], "<f4")
    assert send(live, tensor(16, [2, 2]), values.tobytes()).status_code == 200
    np.testing.assert_array_equal(inlets["digits"].seen["a"], values)
    assert inlets["digits"].seen["a"].dtype == np.float32


def test_rows_of_bytes_are_several_frames(live: LiveConsole, inlets: dict[str, MemoryInlet]) -> None:
    values = np.arange(8, dtype=np.uint8)
    assert send(live, tensor(8, [2, 2, 2], "UINT8"), values.tobytes()).status_code == 200
    np.testing.assert_array_equal(inlets["digits"].seen["a#1"], [[4, 5], [6, 7]])


def test_a_file_is_decoded_as_its_content_type_says(live: LiveConsole, inlets: dict[str, MemoryInlet]) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    png, npy = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    np.save(npy, image)
    for content_type, content in (("png", png.getvalue()), ("npy", npy.getvalue())):
        inlets["digits"].forget()
        binary = files(content)
        answer = send(live, tensor(len(binary), [1], "BYTES", content_type=content_type), binary)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(inlets["digits"].seen["a"], image)


def test_events_of_a_window_are_a_recording(live: LiveConsole, inlets: dict[str, MemoryInlet]) -> None:
    binary = files(dat([(1, 2, 1, 0), (3, 4, 0, 700)]), dat([(1, 2, 1, 9)]))
    events = tensor(len(binary), [2], "BYTES", "events", content_type="dat")
    assert send(live, events, binary, "/v2/models/gesture/infer").status_code == 200
    assert [inlets["gesture"].seen[f"a#{row}"].tolist() for row in range(2)] == [[0, 700], [9]]


def test_metadata_say_how_a_model_bins_events(live: LiveConsole) -> None:
    told = live.client.get("/v2/models/gesture").json()["parameters"]
    assert {name: told[name] for name in told if name.startswith("events_")} == {
        "events_width": 304, "events_height": 240, "events_dt_us": 1000, "events_t0": "first_event",
        "events_tail": "drop",
    }  # fmt: skip
    assert not any("events" in name for name in live.client.get("/v2/models/digits").json()["parameters"])


FLOATS = np.zeros(4, "<f4").tobytes()
BAD: list[tuple[dict[str, Any], bytes, str]] = [
    (tensor(15, [2, 2]), FLOATS, "binary_data_size is 15; 16 bytes are behind the JSON"),
    (tensor(None, [2, 2]), FLOATS, "binary_data_size is None; 16 bytes"),
    (tensor(16, [2, 2]), b"", "binary_data_size is 16; 0 bytes"),
    (tensor(12, [2, 2]), FLOATS[:12], "has 12 bytes; its shape and datatype need 16"),
    (tensor(16, [2, 2]), np.array([0, 0, np.nan, 0], "<f4").tobytes(), "every value must be finite"),
    (tensor(None, [2, 2]), b"", "neither data nor binary_data_size"),
    (tensor(32, [2, 2], "FP64"), FLOATS * 2, "has datatype 'FP64'"),
    (tensor(4, [1], "BYTES", content_type="npy"), files(b""), "not a .npy file"),
    (tensor(5, [1], "BYTES", content_type="exe"), files(b"x"), "type '.exe' are not known"),
    (tensor(5, [1], "BYTES"), files(b"x"), "are not known"),
    (tensor(5, [2], "BYTES", content_type="npy"), files(b"x"), "not a .npy file"),
    (tensor(3, [1], "BYTES", content_type="npy"), b"abc", "is cut off"),
    (tensor(8, [1], "BYTES", content_type="npy"), b"\xff\xff\xff\xff1234", "is cut off"),
    (tensor(0, [0], "BYTES", content_type="npy"), b"", "expected [n] for n files"),
    (tensor(5, [1, 1], "BYTES", content_type="npy"), files(b"x"), "expected [n] for n files"),
]


@pytest.mark.parametrize(("bad", "binary", "complaint"), BAD)
def test_bad_contents_are_named_and_reach_nobody(
    live: LiveConsole, inlets: dict[str, MemoryInlet], bad: dict[str, Any], binary: bytes, complaint: str
) -> None:
    answer = send(live, bad, binary)
    assert (answer.status_code, complaint in answer.json()["error"]) == (400, True), answer.text
    assert inlets["digits"].seen == {}


def test_bytes_behind_the_last_file_are_refused(live: LiveConsole) -> None:
    npy = io.BytesIO()
    np.save(npy, np.zeros((2, 2), np.float32))
    binary = files(npy.getvalue()) + b"more"
    answer = send(live, tensor(len(binary), [1], "BYTES", content_type="npy"), binary)
    assert "4 bytes behind its last element" in answer.json()["error"]


def test_a_truth_other_than_0_and_1_is_refused(live: LiveConsole, inlets: dict[str, MemoryInlet]) -> None:
    for binary, code in ((bytes([0, 1, 1, 0]), 200), (bytes([0, 1, 2, 0]), 400)):
        assert send(live, tensor(4, [4], "BOOL", "on"), binary, "/v2/models/flags/infer").status_code == code


@pytest.mark.parametrize("declared", ["-1", "0", "x", "9999", "", "1" * 30])
def test_a_wrong_length_of_the_json_is_refused(live: LiveConsole, declared: str) -> None:
    answer = send(live, tensor(16, [2, 2]), FLOATS, **{"inference-header-content-length": declared})
    assert answer.status_code == 400
    assert "must be the bytes of JSON" in answer.json()["error"]


def test_binary_contents_have_a_limit(live: LiveConsole) -> None:
    answer = send(live, tensor(FILE_BYTES + 1, [1], "BYTES", content_type="npy"), bytes(FILE_BYTES + 1))
    assert answer.status_code == 413


def test_a_stored_end_without_a_result_says_where_it_is_stored(
    live: LiveConsole, inlets: dict[str, MemoryInlet]
) -> None:
    inlets["digits"].ends["a"] = failed("a", Kind.REJECTED, "rejected", "blank")
    answer = send(live, tensor(16, [2, 2]), FLOATS)
    assert answer.status_code == 422
    assert answer.json()["stored"] == {"kind": "rejected", "code": "rejected", "stream": "digits", "seq": 9}
    inlets["digits"].ends["a"] = NotOpen("the pipeline is starting or stopping")
    answer = send(live, tensor(16, [2, 2]), FLOATS)
    assert (answer.status_code, "stored" in answer.json(), answer.headers["retry-after"]) == (503, False, "1")
