"""Turns a TOML table into a frozen msgspec Struct and reports every error at once, each with key, value and hint.

A schema is a Struct; a field's type says what is legal (``msgspec.Meta`` for bounds) and ``Meta(description=…)`` is the
hint. Nested Structs are tables, ``tuple[Struct, ...]`` are arrays of tables; a union of tagged Structs is chosen by its
tag field. Knows nothing of what the settings mean: rules over several fields live in the schema, in ``check``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

import msgspec

from edged.errors import ConfigError

T = TypeVar("T")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"  # safe as a file name, as a level of an MQTT topic and in a URL
SECRET = re.compile("password|secret|token", re.IGNORECASE)  # what looks so is not repeated in a message
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=NAME,
        description="must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    ),
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, what was found, what is expected."""

    key: str
    value: object
    hint: str

    def __str__(self) -> str:
        shown = "" if self.value is msgspec.UNSET else f" = {self.value!r}"
        return f"{self.key}{shown}: {self.hint}"


class InvalidSettings(ConfigError):
    """All problems of one configuration."""

    def __init__(self, where: str, problems: list[Problem]) -> None:
        noun = "error" if len(problems) == 1 else "errors"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{where}: {len(problems)} {noun}\n{lines}")
        self.problems = problems


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError naming the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", "name it with --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def strings_of(table: object) -> Iterator[str]:
    """Every text in a parsed file, however deep: among them are the paths that it names."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, Mapping | list):
        for value in table.values() if isinstance(table, Mapping) else table:
            yield from strings_of(value)


def parse(schema: type[T], table: object, problems: list[Problem], key: str = "", base: Path = Path()) -> T | None:
    """Convert a table to ``schema``; paths are taken relative to ``base``.

    Adds to ``problems`` what is wrong; returns None when there was anything in this table. A Struct that has a method
    ``check() -> Iterable[tuple[field, value, hint]]`` is asked for what its types cannot say.
    """
    return cast("T | None", _Parser(problems, base).struct(schema, table, key))


class _Parser:
    """One walk over one table; collects problems instead of stopping at the first."""

    def __init__(self, problems: list[Problem], base: Path) -> None:
        self._problems = problems
        self._base = base

    def struct(self, schema: Any, table: object, key: str) -> Any:
        if not isinstance(table, Mapping):
            self._add(key or "(top)", table, "must be a table")
            return None
        before = len(self._problems)
        fields = {field.encode_name: field for field in msgspec.structs.fields(schema)}
        tag = schema.__struct_config__.tag_field
        for name in (name for name in table if name not in fields and name != tag):
            shown = msgspec.UNSET if SECRET.search(name) else table[name]
            self._add(_join(key, name), shown, _unknown(name, list(fields)))
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name in table:
                values[field.name] = self._value(field.type, table[name], _join(key, name))
            elif field.required:
                self._add(_join(key, name), msgspec.UNSET, _missing(field.type))
        if len(self._problems) > before:
            return None
        made = schema(**values)
        for name, value, hint in getattr(made, "check", tuple)():
            self._add(_join(key, name), value, hint)
        return made if len(self._problems) == before else None

    def _value(self, kind: Any, value: object, key: str) -> Any:
        bare = _bare(kind)
        if _is_struct(bare):
            return self.struct(bare, value, key)
        structs = [_bare(choice) for choice in get_args(bare) if _is_struct(_bare(choice))] if _is_union(bare) else []
        if structs and value is not None:
            return self._tagged(structs, value, key)
        items = get_args(bare) if get_origin(bare) in (tuple, list) else ()
        if items and isinstance(value, list) and _holds_structs(items[0]):
            return tuple(self._value(items[0], item, f"{key}[{i}]") for i, item in enumerate(value))
        try:
            return msgspec.convert(value, kind, dec_hook=self._decode)
        except msgspec.ValidationError as error:
            self._add(key, value, _describe(kind) or str(error))
            return None

    def _tagged(self, structs: list[Any], value: object, key: str) -> Any:
        tag_field = structs[0].__struct_config__.tag_field
        by_tag = {struct.__struct_config__.tag: struct for struct in structs}
        if len(structs) == 1 and tag_field is None:
            return self.struct(structs[0], value, key)
        tag = value.get(tag_field) if isinstance(value, Mapping) else None
        if not isinstance(tag, str) or tag not in by_tag:
            shown = msgspec.UNSET if tag is None else tag
            self._add(_join(key, str(tag_field)), shown, f"must be one of {', '.join(sorted(map(str, by_tag)))}")
            return None
        return self.struct(by_tag[tag], value, key)

    def _decode(self, kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            return self._base / value
        raise ValueError("must be a path" if kind is Path else f"must be a {kind.__name__}")

    def _add(self, key: str, value: object, hint: str) -> None:
        self._problems.append(Problem(key, value, hint))


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) is Union or isinstance(kind, UnionType)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _holds_structs(kind: Any) -> bool:
    bare = _bare(kind)
    return _is_struct(bare) or (_is_union(bare) and any(_is_struct(_bare(choice)) for choice in get_args(bare)))


def _describe(kind: Any) -> str:
    metas = [meta for meta in get_args(kind)[1:] if isinstance(meta, msgspec.Meta)]
    return next((meta.description for meta in metas if meta.description), "")


def _missing(kind: Any) -> str:
    described = _describe(kind)
    return f"is missing: {described}" if described else "is missing"


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"is not a setting; did you mean {close[0]!r}?" if close else f"is not a setting; known: {', '.join(known)}"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
