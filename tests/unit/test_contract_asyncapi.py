"""The committed AsyncAPI document is current, holds together, and its schemas judge messages as the structs do.

These are checks of our own, of what AsyncAPI 3.0 asks for and of what its published JSON schema cannot say (that every
reference leads somewhere). The published schema itself is somebody else's data and not part of the tree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # the package carries no types
import pytest

from cloud_sync.contract.asyncapi import CHANNELS, document, render
from cloud_sync.contract.messages import Gap
from cloud_sync.contract.results import Origin, Part, pack
from cloud_sync.contract.topics import Channel

COMMITTED = Path(__file__).parents[2] / "docs" / "reference" / "asyncapi.json"
MAKE = 'python -c "from cloud_sync.contract.asyncapi import render; print(render(), end=str())" > ' + COMMITTED.name


def walk(value: Any) -> Iterator[Any]:
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        yield from walk(item)


def resolve(root: dict[str, Any], ref: str) -> Any:
    assert ref.startswith("#/"), ref
    value: Any = root
    for step in ref[2:].split("/"):
        value = value[step]
    return value


def test_the_committed_document_is_current() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == render(), f"make it again with: {MAKE}"


def test_every_reference_leads_somewhere() -> None:
    root = document()
    refs = [value["$ref"] for value in walk(root) if isinstance(value, dict) and "$ref" in value]
    assert len(refs) > 20
    for ref in refs:
        assert resolve(root, ref), ref


def test_every_channel_has_its_address_parameters_message_and_operation() -> None:
    root = document()
    assert root["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(root["info"])
    assert set(root["channels"]) == {channel.value for channel in Channel} == {channel.value for channel in CHANNELS}
    for name, channel in root["channels"].items():
        assert set(channel["parameters"]) == set(re.findall(r"{(\w+)}", channel["address"])), name
        (operation,) = [o for o in root["operations"].values() if o["channel"]["$ref"] == f"#/channels/{name}"]
        assert operation["action"] in {"send", "receive"}
        (message,) = operation["messages"]
        assert resolve(root, resolve(root, message["$ref"])["$ref"])["payload"]
        assert operation["bindings"]["mqtt"]["qos"] in {0, 1}


def test_every_schema_is_a_json_schema() -> None:
    for schema in document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_a_schema_accepts_what_we_send_and_refuses_what_we_refuse() -> None:
    root = document()
    validator = jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/ResultEvent", "components": root["components"]}
    )
    gap = Gap(first=1, last=4, reason="shed")
    good = json.loads(pack(Origin("f", "d", "e", None, "s"), Part(1, 4, (), (gap,)), historical=True))
    validator.validate(good)
    for spoil in ({"type": "edged.results.v2"}, {"data": {**good["data"], "surprise": 1}}, {"id": ""}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**good, **spoil})
