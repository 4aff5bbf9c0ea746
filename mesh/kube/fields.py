# SPDX-License-Identifier: Apache-2.0
"""Typed access to untyped objects: every wrong type is an error that carries the path of the field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType

from mesh.model.workload import EMPTY, IPAddress
from mesh.printable import printable

Path = tuple[str | int, ...]

_SIMPLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")

SHOWN = 60
KEY_SHOWN = 60
"""Characters of an odd key in the path of a field."""
INTERN_LIMIT = 65536
_interned: dict[frozenset[tuple[str, str]], Mapping[str, str]] = {}


def path_text(path: Path) -> str:
    """``spec.ports[0].targetPort``; keys that are no plain words stand in quotes and brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _SIMPLE.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f'["{printable(part, KEY_SHOWN)}"]'
    return text


class FieldError(ValueError):
    """A field has not the type or the form it must have."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path_text(path)}: {message}" if path else message)
        self.path = path
        self.message = message


def shown(value: object) -> str:
    """A value as YAML users know it, short and on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case str():
            text = f'"{value[:SHOWN]}"'
        case Mapping():
            text = "{" + ", ".join(str(key) for key in list(value)[:5]) + "}"
        case list():
            items = ["[..]" if isinstance(item, list) else shown(item) for item in value[:3]]
            text = "[" + ", ".join(items) + (", .." if len(value) > 3 else "") + "]"
        case _:
            text = str(value)
    return printable(text, SHOWN)


def interned(labels: Mapping[str, str]) -> Mapping[str, str]:
    """One object for equal label sets: the pods of a Deployment share theirs."""
    if not labels:
        return EMPTY
    key = frozenset(labels.items())
    found = _interned.get(key)
    if found is None:
        found = MappingProxyType(dict(sorted(labels.items())))
        if len(_interned) < INTERN_LIMIT:
            _interned[key] = found
    return found


class Field:
    """A value and where it stands. Absent and null are the same, as in Kubernetes."""

    __slots__ = ("path", "value")

    def __init__(self, value: object, path: Path = ()) -> None:
        self.value = value
        self.path = path

    def error(self, message: str) -> FieldError:
        return FieldError(self.path, message)

    def wrong(self, wanted: str) -> FieldError:
        if self.value is None:
            return self.error(f"is missing, expected {wanted}")
        return self.error(f"expected {wanted}, got {shown(self.value)}")

    @property
    def absent(self) -> bool:
        return self.value is None

    def get(self, name: str) -> Field:
        """A member of an object; of an absent object, an absent field."""
        if self.value is None:
            return Field(None, (*self.path, name))
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return Field(self.value.get(name), (*self.path, name))

    def only(self, *names: str) -> None:
        """For objects where a misspelt field would change who may do what: unknown ones are errors."""
        if isinstance(self.value, dict):
            for name in self.value:
                if name not in names:
                    raise FieldError((*self.path, name), f"is not known here; known: {', '.join(names)}")

    def items(self) -> Iterator[Field]:
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for index, item in enumerate(self.value):
            yield Field(item, (*self.path, index))

    def text(self, default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def name(self, default: str | None = None) -> str:
        """A DNS subdomain, as most Kubernetes names are."""
        text = self.text(default)
        if len(text) > 253 or not _DNS_SUBDOMAIN.fullmatch(text):
            raise self.wrong("a DNS name (lower case letters, digits, '-' and '.')")
        return text

    def label(self, default: str | None = None) -> str:
        """A DNS label: namespaces and services."""
        text = self.text(default)
        if not _DNS_LABEL.fullmatch(text):
            raise self.wrong("a DNS label (at most 63 lower case letters, digits and '-')")
        return text

    def flag(self, default: bool) -> bool:
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def port(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.wrong("a port number")
        if not 0 < self.value < 65536:
            raise self.wrong("a port number from 1 to 65535")
        return self.value

    def port_or_name(self) -> int | str:
        if isinstance(self.value, str):
            return self.port_name()
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.wrong("an integer or a port name")
        return self.port()

    def port_name(self) -> str:
        text = self.text()
        if len(text) > 15 or "--" in text or not _PORT_NAME.fullmatch(text):
            raise self.wrong("a port name (at most 15 lower case letters, digits and '-', one a letter)")
        return text

    def address(self) -> IPAddress:
        text = self.text()
        try:
            found = ip_address(text)
        except ValueError:
            raise self.wrong("an IP address") from None
        if isinstance(found, IPv6Address):
            if found.scope_id is not None:
                raise self.wrong("an IP address without a zone")
            if found.ipv4_mapped is not None:
                return found.ipv4_mapped
        if found.is_unspecified or found.is_multicast or found.is_loopback:
            raise self.wrong("an address a pod or service can have")
        return found

    def string_map(self) -> Mapping[str, str]:
        if self.value is None:
            return EMPTY
        if not isinstance(self.value, dict):
            raise self.wrong("an object of strings")
        for key, value in self.value.items():
            if not isinstance(value, str):
                hint = " (put it in quotes)" if isinstance(value, int | float) else ""
                raise FieldError((*self.path, key), f"expected a string, got {shown(value)}{hint}")
        return interned(self.value)


def is_ipv4(ip: IPAddress) -> bool:
    return isinstance(ip, IPv4Address)
