"""Secrets are recognised wherever programs print them; what is no secret stays readable."""

from __future__ import annotations

import base64
import json
import urllib.parse

import pytest

from edged.diag.redaction import Redactor, is_secret_name, secrets_of

SECRET = "Hunter2-ab%c/9"
BY_SHAPE = [
    'password = "{}"',
    "password={}",
    "brokerPassword: {}",
    "MQTT_PASSWORD={} started",
    "'passwd': '{}'",
    '"broker_password": "{}",',
    '{{\\"token\\": \\"{}\\"}}',
    "api-key: {}",
    "the password is {}",
    "password '{}' was refused",
    "nmcli device wifi connect home password {}",
    "mosquitto_pub -h broker -u edge -P {} -t a",
    "edged-sync --password {}",
    "mqtts://edge:{}@broker.example:8883",
    "https://{}@example.org/hook",
    "GET /ingest?sig={}&n=1",
    "Authorization: Basic {}",
    "Set-Cookie: session={}; Path=/",
    "wlan0: psk={}",
    "wpa_supplicant[1]: ssid='{}' key_mgmt=WPA-PSK",
    "802-11-wireless-security.psk: {} and the rest of the phrase",
    "-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n{}",
    "{}\nMHcCAQ==\n-----END EC PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\\n{}\\n-----END OPENSSH PRIVATE KEY-----",
    "Environment=EDGED_TOKEN={}",
    "secret key={},next",
]


@pytest.mark.parametrize("form", BY_SHAPE)
def test_a_secret_that_nobody_knows_by_heart_is_known_by_what_stands_before_it(form: str) -> None:
    text = "before\n" + form.format(SECRET) + "\nafter"
    found = Redactor().redact(text)
    assert SECRET not in found
    assert "Hunter2" not in found
    assert found.startswith("before\n") or "END EC" in form
    if "BEGIN PRIVATE KEY" not in form:
        assert found.endswith("\nafter")


@pytest.mark.parametrize(
    "token",
    [
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcDEF123_-x",
        "ghp_0123456789abcdefghij0123",
        "AKIAIOSFODNN7EXAMPLE",
        "$6$rounds$abcdefgh12345678.ABCDEFGHIJ",
    ],
)
def test_well_known_kinds_of_tokens_are_known_by_their_look(token: str) -> None:
    assert token not in Redactor().redact(f"got {token} back")


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda secret: json.dumps(secret),
        lambda secret: urllib.parse.quote(secret, safe=""),
        lambda secret: base64.b64encode(secret.encode()).decode(),
        lambda secret: repr(secret),
    ],
)
def test_a_secret_that_is_known_by_heart_goes_in_every_form(form: object) -> None:
    secret = 'wörd "quoted" \\ & / 7'
    assert callable(form)
    text = f"said {form(secret)} and went on"
    redactor = Redactor([secret])
    assert redactor.leaks(text)
    assert not redactor.leaks(redactor.redact(text))
    assert redactor.redact(text).endswith("and went on")
    assert Redactor().redact(text) == text, "the control: nothing else would have found it"


def test_what_is_no_secret_stays_readable() -> None:
    text = (
        'state_dir = "/var/lib/edged"\npassword_file = "/etc/edged/broker.password"\n'
        "model digits@1.0.0 sha256 " + "ab12" * 16 + "\nmqtt://localhost:1883 connected\n"
        "engine onnxruntime ready; 12 results; epoch 7d0f6a1e-0000-4000-8000-000000000000\n"
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    )
    assert Redactor(["abc"]).redact(text) == text, "a secret of three letters is not looked for in words"


def test_the_configuration_tells_its_own_secrets() -> None:
    table = {
        "sync": {"broker": "mqtt://edge:pw-in-url@b", "password_file": "/a/b", "username": "edge"},
        "pipeline": [{"source": [{"token": "tok-123", "name": "cam"}]}],
        "secrets": ["one-1", "two-2"],
    }
    assert secrets_of(table) == {"pw-in-url", "tok-123", "one-1", "two-2"}
    assert is_secret_name("http_token")
    assert not is_secret_name("trusted_keys")
    assert not is_secret_name("password_file")
