# SPDX-License-Identifier: Apache-2.0
"""Asks the container runtime (containerd, CRI-O) which pods run here. The agent's door to gRPC."""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc

from mesh.model.workload import IPAddress
from mesh.protocol import cri_pb2 as cri

ANSWER_S = 5.0
MAX_ANSWER = 32 << 20
_SERVICE = "/runtime.v1.RuntimeService/"


class RuntimeUnavailable(Exception):
    """The runtime does not answer, or not as agreed."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One pod as the runtime has it. ``netns`` is None on the host's network. ``created``: nanoseconds, for order."""

    id: str
    namespace: str
    name: str
    uid: str
    netns: Path | None
    addresses: tuple[IPAddress, ...]
    created: int


class CriRuntime:
    """Details of a sandbox do not change while it is ready: they are asked for once."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        options = [("grpc.max_receive_message_length", MAX_ANSWER)]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self._list = self._channel.unary_unary(
            f"{_SERVICE}ListPodSandbox",
            request_serializer=cri.ListPodSandboxRequest.SerializeToString,
            response_deserializer=cri.ListPodSandboxResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            f"{_SERVICE}PodSandboxStatus",
            request_serializer=cri.PodSandboxStatusRequest.SerializeToString,
            response_deserializer=cri.PodSandboxStatusResponse.FromString,
        )
        self._known: dict[str, Sandbox] = {}

    async def sandboxes(self) -> list[Sandbox]:
        """The ready ones. Raises RuntimeUnavailable."""
        ready = cri.PodSandboxStateValue(state=cri.SANDBOX_READY)
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(state=ready))
        try:
            answer = await self._list(request, timeout=ANSWER_S)
            found = {}
            for item in answer.items:
                known = self._known.get(item.id) or await self._details(item.id)
                if known is not None:
                    found[item.id] = known
        except grpc.aio.AioRpcError as error:
            raise RuntimeUnavailable(f"{self.socket}: {error.code().name}: {error.details()}") from error
        self._known = found
        return list(found.values())

    async def _details(self, id_: str) -> Sandbox | None:
        """None when it ended meanwhile, or has no namespace yet."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=id_, verbose=True)
        try:
            answer = await self._status(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        status = answer.status
        host = status.linux.namespaces.options.network == cri.NODE
        netns = None if host else netns_of(answer.info.get("info", ""))
        if netns is None and not host:
            return None
        meta, network = status.metadata, status.network
        addresses = tuple(_addresses([network.ip, *(one.ip for one in network.additional_ips)]))
        return Sandbox(id_, meta.namespace, meta.name, meta.uid, netns, addresses, status.created_at)

    async def close(self) -> None:
        await self._channel.close(None)


def netns_of(info: str) -> Path | None:
    """The network namespace in a runtime's verbose information; the process's own where the spec names none."""
    try:
        found = json.loads(info)
        namespaces = found.get("runtimeSpec", {}).get("linux", {}).get("namespaces", [])
        for namespace in namespaces:
            if namespace.get("type") == "network":
                path = namespace.get("path")
                if isinstance(path, str) and path.startswith("/"):
                    return Path(path)
        pid = found.get("pid")
    except (ValueError, AttributeError):
        return None
    return Path(f"/proc/{pid}/ns/net") if isinstance(pid, int) and pid > 0 else None


def _addresses(texts: list[str]) -> list[IPAddress]:
    found = []
    for text in texts:
        try:
            found.append(ip_address(text))
        except ValueError:
            continue
    return found
