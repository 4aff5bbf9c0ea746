# SPDX-License-Identifier: Apache-2.0
"""Stands in for kube-proxy in the playground's nodes: service addresses of unmeshed pods and of the node itself.

One transaction replaces the whole table; translations of open connections live on in conntrack. Meshed pods never
come here: their service addresses are resolved before a packet exists. A port without an endpoint is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from nodeagent.playground.objects import IPAddress


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    address: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Frontend:
    """One port of one service address. ``protocol``: tcp or udp."""

    address: IPAddress
    protocol: str
    port: int
    backends: tuple[Backend, ...]


def render(frontends: Iterable[Frontend], families: Sequence[int] = (4, 6)) -> str:
    """An nft script for one node, with a table for each of ``families``. Pure."""
    rows = list(frontends)
    return "".join(_table(family, [row for row in rows if row.address.version == family]) for family in families)


def _table(version: int, rows: list[Frontend]) -> str:
    family, word, kind = ("ip", "ip", "ipv4_addr") if version == 4 else ("ip6", "ip6", "ipv6_addr")
    served = [row for row in rows if row.backends]
    chains = "".join(_chain(family, index, row) for index, row in enumerate(served))
    keys = [f"{row.protocol} . {row.address} . {row.port}" for row in served]
    hairpins = sorted({f"{b.address} . {b.address}" for row in served for b in row.backends})
    vips = sorted({row.address for row in rows}, key=_order)
    key_type = f"inet_proto . {kind} . inet_service"
    look_up = f"meta l4proto . {word} daddr . th dport"
    refuse = f"{word} daddr @vips meta l4proto tcp {look_up} != @served reject with tcp reset"
    # A table that is declared, deleted and declared again is replaced in one transaction.
    return f"""table {family} qanat
delete table {family} qanat
table {family} qanat {{
	set vips {{
		type {kind}
		{_elements(str(vip) for vip in vips)}
	}}
	set served {{
		type {key_type}
		{_elements(keys)}
	}}
	set hairpins {{
		type {kind} . {kind}
		{_elements(hairpins)}
	}}
{chains}	map services {{
		type {key_type} : verdict
		{_elements(f"{key} : goto endpoint{index}" for index, key in enumerate(keys))}
	}}
	chain refuse-forwarded {{
		type filter hook prerouting priority -110
		{refuse}
	}}
	chain refuse-own {{
		type filter hook output priority -110
		{refuse}
	}}
	chain forwarded {{
		type nat hook prerouting priority -100
		{look_up} vmap @services
	}}
	chain own {{
		type nat hook output priority -100
		{look_up} vmap @services
	}}
	chain hairpin {{
		type nat hook postrouting priority 100
		ct status dnat {word} saddr . {word} daddr @hairpins masquerade
	}}
}}
"""


def _order(address: IPAddress) -> tuple[bool, int]:
    return isinstance(address, IPv4Address), int(address)


def _elements(items: Iterable[str]) -> str:
    text = ", ".join(items)
    return f"elements = {{ {text} }}" if text else ""


def _chain(family: str, index: int, row: Frontend) -> str:
    """All backends at random; `dnat … to map` wants the protocol said first."""
    choices = ", ".join(f"{i} : {b.address} . {b.port}" for i, b in enumerate(row.backends))
    chosen = f"numgen random mod {len(row.backends)} map {{ {choices} }}"
    return f"""	chain endpoint{index} {{
		meta l4proto {row.protocol} dnat {family} addr . port to {chosen}
	}}
"""
