# SPDX-License-Identifier: Apache-2.0
"""Fields that several kinds of policy have."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network

from mesh.kube.fields import Field, shown
from mesh.model.policy import Network, StringMatch
from mesh.printable import printable

POLICY_KINDS = ("AuthorizationPolicy", "EgressPolicy", "PeerAuthentication")
MAX_VALUES = 10_000
"""In one list..."""
MAX_PARTS = 50_000
"""...and everything in one policy; keeps hostile objects cheap."""


def rough_name(name: object) -> str:
    """Something to call it by, good or not."""
    return printable(name, 253) if isinstance(name, str) else shown(name)


def check_size(spec: Field) -> None:
    waiting, count = [spec.value], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        if count + len(waiting) > MAX_PARTS:
            raise spec.error(f"has more than {MAX_PARTS} parts; split it into several policies")


def match_labels(spec: Field) -> Mapping[str, str]:
    found = spec.get("selector")
    found.only("matchLabels")
    return found.get("matchLabels").string_map()


def some(parent: Field, name: str) -> list[Field]:
    """A list that may be absent but not empty."""
    found = parent.get(name)
    items = list(found.items())
    if not found.absent and not items:
        raise found.error("must not be empty; leave it out instead")
    if len(items) > MAX_VALUES:
        raise found.error(f"has more than {MAX_VALUES} values")
    return items


def string_match(value: Field) -> StringMatch:
    text = value.text()
    if not text or "*" in text.strip("*") or text.startswith("**") or (len(text) > 1 and text[0] == text[-1] == "*"):
        raise value.wrong('a text, with "*" at most once, at its beginning or end')
    return StringMatch.parse(text.removeprefix("spiffe://"))


def string_matches(parent: Field, name: str) -> tuple[StringMatch, ...]:
    return tuple(string_match(value) for value in some(parent, name))


def accounts(parent: Field, name: str, namespace: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for value in some(parent, name):
        parts = value.text().split("/")
        if len(parts) > 2 or not all(parts):
            raise value.wrong('"<namespace>/<service account>" or "<service account>"')
        found.append((parts[0], parts[1]) if len(parts) == 2 else (namespace, parts[0]))
    return tuple(found)


def network(value: Field) -> Network:
    """An IPv4 block in IPv6 dress is an IPv4 block, as addresses are (mesh.model.snapshot.unmapped)."""
    text = value.text()
    _, slash, bits = text.partition("/")
    try:
        if "%" in text or (slash and not (bits.isascii() and bits.isdigit())):
            raise ValueError
        found = ip_network(text, strict=False)
    except ValueError:
        raise value.wrong("an IP address or a block such as 10.0.0.0/8") from None
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    return found if mapped is None or found.prefixlen < 96 else IPv4Network((mapped, found.prefixlen - 96))


def port_number(value: Field) -> int:
    text = value.text()
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536 or len(text) > 5:
        raise value.error(f'expected a port number in quotes, such as "8080", got {shown(value.value)}')
    return int(text)
