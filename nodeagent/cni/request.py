# SPDX-License-Identifier: Apache-2.0
"""What the plugin sends (daemonset/cni/qanat-cni.c): one JSON object, parsed strictly.

{"command": ADD | DEL | CHECK, "containerId", "netns", "ifname", "args": CNI_ARGS, "config": its standard input}
Names and forms: containernetworking SPEC.md 1.0 and the arguments kubelet gives (K8S_POD_NAMESPACE, ..._NAME, ..._UID).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_interface
from pathlib import Path

from mesh.model.workload import IPAddress

MAX_BYTES = 1 << 20
MAX_ADDRESSES = 16
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Command(Enum):
    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"


class BadRequest(ValueError):
    """Not from our plugin, or not of this version."""


@dataclass(frozen=True, slots=True)
class CniRequest:
    """``netns`` is None where the runtime gave none (a deletion after the namespace has gone)."""

    command: Command
    container: str
    netns: Path | None
    namespace: str
    name: str
    uid: str
    addresses: tuple[IPAddress, ...]

    def __str__(self) -> str:
        return f"{self.command.value} {self.namespace}/{self.name}"


def parse(data: bytes) -> CniRequest:
    """Raises BadRequest that names the field."""
    if len(data) > MAX_BYTES:
        raise BadRequest(f"more than {MAX_BYTES} bytes")
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise BadRequest(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadRequest("not an object")
    text = {key: raw.get(key, "") for key in ("command", "containerId", "netns", "args")}
    for key, value in text.items():
        if not isinstance(value, str) or "\0" in value or len(value) > 4096:
            raise BadRequest(f"{key}: expected a text")
    if text["command"] not in Command.__members__:
        raise BadRequest(f"command: expected ADD, DEL or CHECK, got {text['command']!r}")
    command = Command[text["command"]]
    args = _args(text["args"])
    namespace, name = args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", "")
    for key, value in (("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)):
        if not _LABEL.fullmatch(value):
            raise BadRequest(f"args: {key}: expected a name, got {value[:80]!r}")
    netns = Path(text["netns"]) if text["netns"] else None
    if netns is not None and not netns.is_absolute():
        raise BadRequest("netns: expected an absolute path")
    if netns is None and command is not Command.DEL:
        raise BadRequest("netns: missing")
    addresses = _addresses(raw.get("config"))
    return CniRequest(command, text["containerId"], netns, namespace, name, args.get("K8S_POD_UID", ""), addresses)


def _args(text: str) -> dict[str, str]:
    found = {}
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if equals:
            found[key] = value
    return found


def _addresses(config: object) -> tuple[IPAddress, ...]:
    """Of the container's interfaces, from ``prevResult``: those of interfaces with a sandbox."""
    result = config.get("prevResult") if isinstance(config, dict) else None
    if not isinstance(result, dict):
        return ()
    interfaces, ips = result.get("interfaces") or [], result.get("ips") or []
    if not isinstance(interfaces, list) or not isinstance(ips, list) or len(ips) > MAX_ADDRESSES:
        raise BadRequest("config.prevResult: expected lists of interfaces and ips")
    found: list[IPAddress] = []
    for index, item in enumerate(ips):
        if not isinstance(item, dict):
            raise BadRequest(f"config.prevResult.ips[{index}]: expected an object")
        number = item.get("interface")
        if isinstance(number, int) and 0 <= number < len(interfaces):
            owner = interfaces[number]
            if isinstance(owner, dict) and not owner.get("sandbox"):
                continue
        try:
            found.append(ip_interface(str(item.get("address"))).ip)
        except ValueError:
            raise BadRequest(f"config.prevResult.ips[{index}].address: not an address") from None
    return tuple(dict.fromkeys(found))
