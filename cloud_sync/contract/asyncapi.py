"""Generates the AsyncAPI 3.0 description of the link from the structs, so that the two cannot differ.

The committed copy is ``docs/reference/asyncapi.json``; a test compares it with ``render()``. One table says what goes
over which topic with which quality of service. Pure: writes no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloud_sync.contract.messages import (
    CLOUDEVENT_TYPE,
    JSON_TYPE,
    Ack,
    AlarmEvent,
    Health,
    Info,
    Presence,
    ResultEvent,
)
from cloud_sync.contract.topics import NAMED, VERSION, Channel

HEALTH_EXPIRY_S: Final = 300  # a health report that nobody fetched for so long says nothing any more
PARAMETERS: Final = {
    "root": "First level of every topic; `edged` unless configured.",
    "fleet": "Which fleet the device belongs to.",
    "device": "The device's id; also the user name that a broker's ACL can tie the topics to.",
}
NAME_PARAMETER: Final = {
    Channel.RESULT: ("stream", "The pipeline that the results come from."),
    Channel.EVENT: ("event", "The alarm's name."),
}


@dataclass(frozen=True, slots=True)
class Spoken:
    """What is said on one channel. ``up``: from the device. ``expiry_s``: MQTT 5 message expiry, None for ever."""

    message: type[msgspec.Struct]
    content_type: str
    qos: int
    retain: bool
    up: bool
    expiry_s: int | None = None


CHANNELS: Final = {
    Channel.STATUS: Spoken(Presence, JSON_TYPE, qos=1, retain=True, up=True),
    Channel.INFO: Spoken(Info, JSON_TYPE, qos=1, retain=True, up=True),
    Channel.RESULT: Spoken(ResultEvent, CLOUDEVENT_TYPE, qos=1, retain=False, up=True),
    Channel.EVENT: Spoken(AlarmEvent, CLOUDEVENT_TYPE, qos=1, retain=False, up=True),
    Channel.HEALTH: Spoken(Health, JSON_TYPE, qos=0, retain=False, up=True, expiry_s=HEALTH_EXPIRY_S),
    Channel.ACK: Spoken(Ack, JSON_TYPE, qos=1, retain=False, up=False),
}


def render() -> str:
    """The document as the text of ``docs/reference/asyncapi.json``."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document. The application it describes is edged-sync on a device."""
    kinds = [spoken.message for spoken in CHANNELS.values()]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edged: the link between a device and the world",
            "version": "1.0.0",
            "description": "What edged-sync publishes and receives over MQTT 5. How to consume it: docs/mqtt.md.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON_TYPE,
        "channels": {channel.value: _channel(channel, spoken) for channel, spoken in CHANNELS.items()},
        "operations": {
            f"{'send' if spoken.up else 'receive'}-{channel.value}": _operation(channel, spoken)
            for channel, spoken in CHANNELS.items()
        },
        "components": {
            "messages": {spoken.message.__name__: _message(spoken) for spoken in CHANNELS.values()},
            "schemas": dict(sorted(schemas.items())),
        },
    }


def _channel(channel: Channel, spoken: Spoken) -> dict[str, Any]:
    parameters = dict(PARAMETERS)
    address = f"{{root}}/{VERSION}/{{fleet}}/{{device}}/{channel.value}"
    if channel in NAMED:
        name, described = NAME_PARAMETER[channel]
        parameters[name] = described
        address += f"/{{{name}}}"
    message = spoken.message.__name__
    return {
        "address": address,
        "description": _summary(spoken.message),
        "parameters": {name: {"description": described} for name, described in parameters.items()},
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _operation(channel: Channel, spoken: Spoken) -> dict[str, Any]:
    mqtt: dict[str, Any] = {"qos": spoken.qos, "retain": spoken.retain, "bindingVersion": "0.2.0"}
    if spoken.expiry_s is not None:
        mqtt["messageExpiryInterval"] = spoken.expiry_s
    return {
        "action": "send" if spoken.up else "receive",
        "channel": {"$ref": f"#/channels/{channel.value}"},
        "messages": [{"$ref": f"#/channels/{channel.value}/messages/{spoken.message.__name__}"}],
        "bindings": {"mqtt": mqtt},
    }


def _message(spoken: Spoken) -> dict[str, Any]:
    name = spoken.message.__name__
    return {
        "name": name,
        "summary": _summary(spoken.message),
        "contentType": spoken.content_type,
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }


def _summary(kind: type[msgspec.Struct]) -> str:
    return (kind.__doc__ or "").splitlines()[0]
