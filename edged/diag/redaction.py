"""Takes secrets out of text: those that are known by heart, and those that look like one. Pure.

Two nets, because each has holes. Known secrets (what the configuration holds, and the files that it names) are taken
out wherever they stand, in every form in which programs print them. Everything else is recognised by what stands
before it: a name such as ``password =``, a scheme, the head of a key. In doubt more is taken out than need be.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

GONE = "***"
SHORTEST = 4  # of a secret that is looked for everywhere: a shorter one is part of ordinary words

# A name is secret when one of these words is in it, unless it ends like a place: password_file is a path. The weak
# ones count only where no letter is beside them.
_STRONG = r"passw(?:or)?d|passphrase|passcode|secret|token|credential|api_?-?key|(?:access|private|session)_?-?key"
_WEAK = r"(?<![a-z])(?:pass|pwd|auth(?:orization|_?key)?|cookie|pin|psk|wep_?key\d?|b?ssid)(?![a-z])"
_RADIO = r"(?:psk|passphrase|wep_?key\d?|b?ssid)"  # theirs may hold spaces
_NAME = rf"(?:{_STRONG}|{_WEAK})[\w.-]*"  # what stands before the word is not looked at: that would be slow
_PLACE = re.compile(r"(?:_|-|\.)(?:file|path|dir|name)\Z", re.IGNORECASE)
_QUOTED = r"\\?\"(?:[^\"\\\n]|\\.)*\\?\"?|'[^'\n]*'?"


def _rule(name: str, between: str, value: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<name>{name})(?P<between>{between})(?P<value>{value})", re.IGNORECASE)


_KEY_BLOCK = re.compile(r"-----BEGIN (?!CERTIFICATE|PUBLIC)[^-\n]*-----.*?(?:-----END [^-\n]*-----|\Z)", re.DOTALL)
_KEY_END = re.compile(
    r"\A(?:(?!-----BEGIN).)*?-----END (?!CERTIFICATE|PUBLIC)[^-\n]*-----", re.DOTALL
)  # cut off before
_BLANK = r"[^\S\n]"
_EQUALS = rf"\\?[\"']?{_BLANK}*(?:=>|=|:){_BLANK}*"
_SECRET_NAME = _rule(_NAME, _EQUALS, rf"{_QUOTED}|\S+")
_OF_RADIO = _rule(rf"(?<![a-z]){_RADIO}", _EQUALS, rf"{_QUOTED}|[^\n]+")
_REST_OF_LINE = _rule(r"\b(?:authorization|cookie)", rf"{_BLANK}*[:=]{_BLANK}*", r"[^\n]+")
_SPOKEN = rf"{_BLANK}+(?:is{_BLANK}+|was{_BLANK}+|for{_BLANK}+\S+{_BLANK}+is{_BLANK}+)?"
_SAID = _rule(r"\b(?:passw(?:or)?d|passphrase|psk)", _SPOKEN, rf"{_QUOTED}|\S+")
_SAID_IN_FIGURES = _rule(
    r"\b(?:secret|token|pin|credentials?|b?ssid)", _SPOKEN, r"['\"][^'\"\n]*['\"]|(?=[^\s]*\d)[^\s,;]{4,}"
)
_IN_URL = _rule("", r"://", r"[^\s\"'<>]+(?=@)")
_IN_QUERY = _rule(r"[?&](?:key|sig|signature|sas|code)", r"=", r"[^&\s\"']+")
_OPTION = _rule(
    r"(?<=\s)(?:-P|-pw|--pw|--pass\w*|--token|--secret|--psk|--key-pass)", rf"[= ]{_BLANK}*", rf"{_QUOTED}|\S+"
)
_SCHEME = _rule(r"\b(?:bearer|basic|digest)", rf"{_BLANK}+", r"[\w+/=.~-]{6,}")
_TOKEN = re.compile(
    r"\beyJ[\w-]{4,}\.[\w-]*\.?[\w-]*|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}|\bxox[abp]-[\w-]{8,}|"
    r"\bAKIA[0-9A-Z]{12,}|\bsk-[\w-]{16,}|\$[0-9a-z]{1,6}\$[\w./$=,+-]{16,}"
)
_NAMED = (_REST_OF_LINE, _OF_RADIO, _IN_URL, _IN_QUERY, _OPTION, _SCHEME, _SECRET_NAME, _SAID, _SAID_IN_FIGURES)


class Redactor:
    """Takes secrets out of any text. ``known``: secrets that are known by heart."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for secret in known if len(secret) >= SHORTEST for form in _forms(secret)}
        self._known = sorted(forms, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """The text without its secrets."""
        for form in self._known:
            text = text.replace(form, GONE)
        text = _KEY_END.sub(f"{GONE} (a key)", _KEY_BLOCK.sub(f"{GONE} (a key)", text))
        text = _TOKEN.sub(GONE, text)
        for pattern in _NAMED:
            text = pattern.sub(_without_value, text)
        return text

    def leaks(self, text: str) -> bool:
        """Whether a secret that is known by heart still stands in a text."""
        return any(form in text for form in self._known)


def secrets_of(table: Mapping[str, Any]) -> set[str]:
    """Every secret that a configuration holds in itself: the values of names that say so, and users within URLs."""
    found: set[str] = set()
    for name, value in table.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                found |= secrets_of(item)
            elif isinstance(item, str):
                if is_secret_name(name):
                    found.add(item)
                found |= {match["value"].rpartition(":")[2] for match in _IN_URL.finditer(item)}
    return found


def is_secret_name(name: str) -> bool:
    """Whether a name says that its value is a secret."""
    return bool(re.search(_NAME, name, re.IGNORECASE)) and not _PLACE.search(name)


def _without_value(match: re.Match[str]) -> str:
    if _PLACE.search(match["name"]) and match.re is _SECRET_NAME:
        return match[0]
    quote = match["value"][0] if match["value"][0] in "\"'" else ""
    return f"{match['name']}{match['between']}{quote}{GONE}{quote}"


def _forms(secret: str) -> set[str]:
    """A secret as programs print it: plain, within JSON, within a URL, in base64, line by line."""
    plain = {secret, secret.strip(), json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    plain |= {urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret), repr(secret)[1:-1]}
    plain.add(base64.b64encode(secret.encode()).decode().rstrip("="))
    lines = {line.strip() for line in secret.splitlines() if not line.startswith("-----")}
    return {form for form in plain | lines if len(form) >= SHORTEST}
