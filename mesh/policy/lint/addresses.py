# SPDX-License-Identifier: Apache-2.0
"""Blocks of addresses that say the same twice, or not what they look like."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from mesh.kube.fields import Path
from mesh.policy.known import Known
from mesh.policy.lint.entries import Entry, entries
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written

FIELDS = ("ipBlocks", "source.ip", "destination.ip")


def cidr_contained(written: Written, known: Known) -> Iterator[Finding]:
    """In order of size each block is held against the supernets that were seen, by length: no pair is compared."""
    lists: dict[Path, list[Entry]] = {}
    for entry in entries(written):
        if entry.field in FIELDS:
            lists.setdefault(entry.list_path, []).append(entry)
    for found in lists.values():
        seen: dict[IPv4Network | IPv6Network, str] = {}
        for entry in sorted(found, key=lambda entry: _block(entry).prefixlen):
            block = _block(entry)
            around = next(
                (seen[wide] for n in range(block.prefixlen + 1) if (wide := block.supernet(new_prefix=n)) in seen), ""
            )
            if around:
                message = f"{entry.text} is part of {around} in the same list."
                yield written.finding("cidr-contained", entry.path, message, "drop it")
            seen.setdefault(block, entry.text)


def cidr_host_bits(written: Written, known: Known) -> Iterator[Finding]:
    for entry in entries(written):
        if entry.field in FIELDS and "/" in entry.text:
            block = _block(entry)
            if entry.text.partition("/")[0] != str(block.network_address) and _has_host_bits(entry.text):
                message = f"{entry.text} has bits beyond its length: it is taken as {block}."
                yield written.finding("cidr-host-bits", entry.path, message, f"write {block}, or the address alone")


def _block(entry: Entry) -> IPv4Network | IPv6Network:
    return ip_network(entry.text, strict=False)


def _has_host_bits(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return True
    return False
