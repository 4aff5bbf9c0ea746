# SPDX-License-Identifier: Apache-2.0
"""Wires: a bridge (the fabric) joins the nodes, each node routes to its pods.

Pods have /32 and /128 addresses and one link to their node, all neighbours written down (no ARP, no DAD, no waiting).
Traffic between pods of one node passes through the node's routing, so the stand-in for kube-proxy sees all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from nodeagent.playground import netns, tools
from nodeagent.playground.names import NETNS_DIR, SERVICE_CIDRS, AddressPlan, MeshPaths, interface, mac
from nodeagent.playground.objects import IPAddress

BRIDGE = "br0"
UPLINK = "fab0"
GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"
_SYSCTLS = (
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
)
_ROUTER_SYSCTLS = (
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A node's network; ``index`` counts from 1."""

    name: str
    index: int
    netns: str
    addresses: tuple[IPAddress, ...]
    pod_networks: tuple[IPv4Network | IPv6Network, ...]

    @property
    def path(self) -> Path:
        return netns.path_of(self.netns)


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """``addresses``: one or two, at most one of each family."""

    netns: str
    addresses: tuple[IPAddress, ...]
    host_interface: str

    @property
    def path(self) -> Path:
        return netns.path_of(self.netns)


class Network:
    """Makes and removes the namespaces of one mesh."""

    def __init__(self, paths: MeshPaths) -> None:
        self._paths = paths
        self._plan = AddressPlan(paths.name)
        self.fabric = paths.netns("fabric")

    def node(self, name: str, index: int) -> Node:
        return Node(
            name,
            index,
            self._paths.netns(name),
            self._plan.node_addresses(index),
            self._plan.pod_networks(index),
        )

    async def build(self, nodes: Sequence[Node]) -> None:
        await tools.ip([f"netns add {name}" for name in (self.fabric, *(n.netns for n in nodes))])
        netns.set_sysctls(netns.path_of(self.fabric), _SYSCTLS)
        ports = []
        for node in nodes:
            netns.set_sysctls(node.path, (*_SYSCTLS, *_ROUTER_SYSCTLS))
            port = interface("fb", node.name)
            ports += [
                f"link add {port} type veth peer name {UPLINK} address {mac(node.name)} netns {node.netns}",
                f"link set {port} master {BRIDGE} up",
            ]
        await tools.ip(
            ["link set lo up", f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up", *ports], self.fabric
        )
        for node in nodes:
            await tools.ip(_node_commands(node, nodes), node.netns)

    async def add_pod(self, node: Node, netns_name: str, addresses: Sequence[IPAddress]) -> PodNetwork:
        pod = PodNetwork(netns_name, tuple(addresses), interface("qn", netns_name))
        pod_mac, node_mac = mac(netns_name), mac("gateway", netns_name)
        await tools.ip([f"netns add {netns_name}"])
        netns.set_sysctls(pod.path, _SYSCTLS)
        await tools.ip(
            [
                f"link add {pod.host_interface} address {node_mac} type veth"
                f" peer name eth0 address {pod_mac} netns {netns_name}",
                f"link set {pod.host_interface} up",
                *(line for a in addresses for line in _node_side(pod, node, a, pod_mac)),
            ],
            node.netns,
        )
        await tools.ip(
            ["link set lo up", "link set eth0 up", *(line for a in addresses for line in _pod_side(a, node_mac))],
            netns_name,
        )
        return pod

    async def remove_pod(self, node: Node, pod: PodNetwork) -> None:
        """Deleting the link first makes routes and packets stop now; the namespace goes with its last user."""
        await tools.ip([f"link del {pod.host_interface}"], node.netns, keep_going=True)
        await tools.ip([f"netns del {pod.netns}"], keep_going=True)

    async def remove_all(self) -> list[str]:
        return await remove_namespaces(leftovers(self._paths.netns_prefix))


def leftovers(prefix: str) -> list[str]:
    directory = NETNS_DIR
    return sorted(p.name for p in directory.iterdir() if p.name.startswith(prefix)) if directory.is_dir() else []


async def remove_namespaces(names: Iterable[str]) -> list[str]:
    found = list(names)
    await tools.ip([f"netns del {name}" for name in found], keep_going=True)
    return found


def _node_commands(node: Node, nodes: Sequence[Node]) -> list[str]:
    commands = [
        "link set lo up",
        f"link set {UPLINK} up",
        *(f"addr add {a}/{24 if a.version == 4 else 64} dev {UPLINK}{_nodad(a)}" for a in node.addresses),
        # Service addresses need a route for the look-up that precedes their translation.
        *(f"route add {cidr} dev {UPLINK} src {a}" for cidr, a in zip(SERVICE_CIDRS, node.addresses, strict=False)),
        *(f"route add unreachable {cidr}" for cidr in node.pod_networks),
    ]
    for other in nodes:
        if other is not node:
            for cidr, via, own in zip(other.pod_networks, other.addresses, node.addresses, strict=True):
                commands.append(f"route add {cidr} via {via} dev {UPLINK} src {own}")
                commands.append(f"neigh replace {via} lladdr {mac(other.name)} dev {UPLINK} nud permanent")
    return commands


def _bits(address: IPAddress) -> int:
    return 32 if address.version == 4 else 128


def _nodad(address: IPAddress) -> str:
    return " nodad" if address.version == 6 else ""


def _node_side(pod: PodNetwork, node: Node, address: IPAddress, pod_mac: str) -> list[str]:
    own = next(a for a in node.addresses if a.version == address.version)
    return [
        f"route replace {address}/{_bits(address)} dev {pod.host_interface} src {own}",
        f"neigh replace {address} lladdr {pod_mac} dev {pod.host_interface} nud permanent",
    ]


def _pod_side(address: IPAddress, node_mac: str) -> list[str]:
    gateway = GATEWAY4 if address.version == 4 else GATEWAY6
    return [
        f"addr add {address}/{_bits(address)} dev eth0{_nodad(address)}",
        f"neigh replace {gateway} lladdr {node_mac} dev eth0 nud permanent",
        f"route add default via {gateway} dev eth0 onlink src {address}",
    ]
