# SPDX-License-Identifier: Apache-2.0
"""A parsed YAML document, read place by place: what is wrong is named with its path."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any

from nodeagent.playground.errors import ObjectError
from nodeagent.playground.objects import IPAddress


class Reader:
    """A place in a parsed document that knows its path. ``Any`` ends here."""

    def __init__(self, file: str, value: Any, obj: str, path: str) -> None:
        self.file, self.value, self.obj, self.path = file, value, obj, path

    def error(self, message: str) -> ObjectError:
        return ObjectError(self.file, self.obj, self.path or "(object)", message)

    def at(self, key: str) -> Reader:
        value = self.mapping().get(key)
        return Reader(self.file, value, self.obj, f"{self.path}.{key}" if self.path else key)

    def mapping(self) -> dict[str, Any]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"expected a mapping, found {_kind(self.value)}")
        return self.value

    def items(self) -> list[Reader]:
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, found {_kind(self.value)}")
        return [Reader(self.file, v, self.obj, f"{self.path}[{i}]") for i, v in enumerate(self.value)]

    def text(self, default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str) or (default is None and not self.value):
            raise self.error(f"expected text, found {_kind(self.value)}")
        return self.value

    def number(self, default: float | None = None, low: float = 0, high: float = 2**31) -> float:
        value = default if self.value is None else self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(f"expected a number from {low:g} to {high:g}, found {self.value!r}")
        return value

    def port(self, default: int | None = None) -> int:
        return int(self.number(default, 1, 65535))

    def flag(self) -> bool:
        if self.value is None:
            return False
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, found {_kind(self.value)}")
        return self.value

    def texts(self) -> Mapping[str, str]:
        for key, value in self.mapping().items():
            if not isinstance(value, str):
                raise self.at(str(key)).error(f"expected text, found {_kind(value)} (quote it)")
        return MappingProxyType(dict(self.mapping()))

    def address(self) -> IPAddress:
        try:
            return ip_address(self.text())
        except ValueError as error:
            raise self.error(str(error)) from error


def about(reader: Reader, obj: str) -> Reader:
    return Reader(reader.file, reader.value, obj, reader.path)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:60]
