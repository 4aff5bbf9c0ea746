# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain values with line numbers, within limits that hold for hostile files too.

Values are built from the parser's events with a stack of our own: PyYAML's composer recurses in C and dies of deeply
nested text, and its merge keys and aliases can grow without bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from mesh.kube.fields import Path

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # pragma: no cover - PyYAML without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_DOCUMENTS = 10_000
MAX_DEPTH = 100
MAX_NODES = 2_000_000
"""Values in one file after aliases are followed; 4 MiB of plain YAML cannot have more."""
MAX_NUMBER = 64
"""Characters; longer plain words are strings. Base-60 numbers cost quadratic time."""

_IMPLICIT = {
    "tag:yaml.org,2002:bool": yaml.constructor.SafeConstructor.construct_yaml_bool,
    "tag:yaml.org,2002:int": yaml.constructor.SafeConstructor.construct_yaml_int,
    "tag:yaml.org,2002:float": yaml.constructor.SafeConstructor.construct_yaml_float,
    "tag:yaml.org,2002:null": yaml.constructor.SafeConstructor.construct_yaml_null,
}
_MERGE = "<<"


class DocumentError(ValueError):
    """The file as a whole cannot be read."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """``value``: dicts with string keys, lists, strings, numbers, booleans, None. Times stay strings, as in JSON."""

    value: object
    line: int
    _marks: dict[int, dict[str | int, int]] = field(repr=False)

    def line_of(self, path: Path) -> int:
        """The line of a field, or of the nearest thing around it that is there."""
        value, line = self.value, self.line
        for part in path:
            marks = self._marks.get(id(value))
            if marks is None or part not in marks:
                break
            line = marks[part]
            if isinstance(value, dict):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int):
                value = value[part]
        return line


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen. ``size`` counts the values in it, through aliases."""

    value: dict[str, object] | list[object]
    marks: dict[str | int, int]
    anchor: str | None
    line: int
    size: int = 1
    key: str | None = None
    merged: list[object] = field(default_factory=list)


def read_documents(data: bytes) -> list[Document]:
    """Every document of a file that is not empty. Raises DocumentError."""
    if len(data) > MAX_FILE_BYTES:
        raise DocumentError(f"is larger than {MAX_FILE_BYTES} bytes; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"is not UTF-8: byte 0x{data[error.start]:02x}", line) from None
    loader = _Loader(text)
    try:
        return list(_Builder(loader).documents())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(f"YAML: {error.problem or error.context}", _clamped(mark, text)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise DocumentError(f"YAML: {error.reason}", line) from None
    finally:
        loader.dispose()


class _Builder:
    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._nodes = 0

    def documents(self) -> Iterator[Document]:
        count = 0
        while True:
            event = self._loader.get_event()
            if isinstance(event, yaml.StreamEndEvent):
                return
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > MAX_DOCUMENTS:
                    raise DocumentError(f"has more than {MAX_DOCUMENTS} documents", _line(event))
                document = self._document()
                if document.value is not None:
                    yield document

    def _document(self) -> Document:
        stack: list[_Open] = []
        marks: dict[int, dict[str | int, int]] = {}
        anchors: dict[str, tuple[object, int]] = {}
        while True:
            event = self._loader.get_event()
            line = _line(event)
            size = 1
            if isinstance(event, yaml.ScalarEvent):
                value = self._scalar(event, line)
                if event.anchor:
                    anchors[event.anchor] = (value, 1)
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:
                    raise DocumentError(f"alias *{event.anchor} is unknown here", line)
                value, size = anchors[event.anchor]
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                if len(stack) >= MAX_DEPTH:
                    raise DocumentError(f"is nested deeper than {MAX_DEPTH} levels", line)
                if event.tag and not event.tag.startswith(("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")):
                    raise DocumentError(f"tag {event.tag} is not allowed", line)
                fresh: dict[str, object] | list[object] = {} if isinstance(event, yaml.MappingStartEvent) else []
                stack.append(_Open(fresh, {}, event.anchor, line))
                continue
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                done = stack.pop()
                _merge(done)
                value, size, line = done.value, done.size, done.line
                marks[id(value)] = done.marks
                if done.anchor:
                    anchors[done.anchor] = (value, size)
            else:
                raise DocumentError("YAML: unexpected end", line)
            self._count(size, line, counted=isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent))
            if not stack:
                self._loader.get_event()  # the document's end
                return Document(value, line, marks)
            _put(stack[-1], value, size, line)

    def _count(self, size: int, line: int, counted: bool) -> None:
        self._nodes += 1 if counted else size
        if self._nodes > MAX_NODES:
            raise DocumentError(f"has more than {MAX_NODES} values once its aliases are followed", line)

    def _scalar(self, event: Any, line: int) -> object:
        text: str = event.value
        tag = event.tag
        if tag is None or tag == "!":
            if not event.implicit[0] or (not text and event.style) or len(text) > MAX_NUMBER:
                return text
            tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)
        construct = _IMPLICIT.get(tag)
        if construct is None or len(text) > MAX_NUMBER:
            if not tag.startswith("tag:yaml.org,2002:"):
                raise DocumentError(f"tag {tag} is not allowed", line)
            return text
        try:
            return construct(self._loader, yaml.ScalarNode(tag, text))
        except (ValueError, KeyError, IndexError):
            raise DocumentError(f"{text[:40]!r} is not a valid {tag.rpartition(':')[2]}", line) from None


def _clamped(mark: Any, text: str) -> int:
    """libyaml puts an unexpected end on a line after the last."""
    return min(int(mark.line) + 1, text.count("\n") + 1) if mark else 0


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _put(parent: _Open, value: object, size: int, line: int) -> None:
    parent.size += size
    if isinstance(parent.value, list):
        parent.marks[len(parent.value)] = line
        parent.value.append(value)
    elif parent.key is None:
        if isinstance(value, dict | list) or value is None:
            raise DocumentError("a key must be a plain word", line)
        parent.key = value if isinstance(value, str) else _key_text(value)
        parent.marks.setdefault(parent.key, line)
    else:
        key, parent.key = parent.key, None
        if key == _MERGE:
            parent.merged.append(value)
        elif key in parent.value:
            raise DocumentError(f"key {key!r} stands twice in one object", line)
        else:
            parent.value[key] = value


def _key_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _merge(done: _Open) -> None:
    """``<<: *base`` and ``<<: [*a, *b]``: keys not given here come from there, the first that has them."""
    if not done.merged or not isinstance(done.value, dict):
        return
    for merged in done.merged:
        for base in merged if isinstance(merged, list) else [merged]:
            if not isinstance(base, dict):
                raise DocumentError("<< needs an object or a list of objects", done.line)
            for key, value in base.items():
                done.value.setdefault(key, value)
