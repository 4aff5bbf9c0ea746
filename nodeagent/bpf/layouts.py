# SPDX-License-Identifier: Apache-2.0
"""bpf/include/qanat.h in Python: kinds.py has its enumerations, structs.py its structs, packing.py fills them.

The twins are compared with the compiler's sizes and offsets at import of `nodeagent.bpf.libbpf` (`check`), and with
the BTF of the loaded maps in tests/bpf.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Final

from nodeagent.bpf.kinds import (
    CONDEMNED_MAX,
    MESH_MAX,
    POD_ADDRS,
    POD_MAX,
    PORT_HBONE,
    PORT_INBOUND,
    PORT_OUTBOUND,
    SCHEMA_VERSION,
    SERVICE_LOCAL,
    SERVICE_MAX,
    VERDICT_MAX,
    AgentDown,
    Counter,
    Decision,
    Draw,
    EventKind,
    FlowKind,
    MeshKind,
    Path,
    Paths,
    PodFlag,
    Role,
    SameNode,
)
from nodeagent.bpf.packing import (
    Address,
    SockAddr,
    pack_addr,
    pack_flow_key,
    pack_ip,
    pack_pod_address,
    pack_shortcut_socket,
    pack_socket,
    unpack_addr,
    unpack_ip,
)
from nodeagent.bpf.structs import (
    QnAddr,
    QnArrived,
    QnEvent,
    QnFlow,
    QnFlowKey,
    QnHalf,
    QnIp,
    QnJoin,
    QnListed,
    QnPod,
    QnService,
    QnSettings,
    QnSocket,
    QnVerdict,
    QnVerdictKey,
)

__all__ = (
    "CONDEMNED_MAX",
    "CONSTANTS",
    "MESH_MAX",
    "POD_ADDRS",
    "POD_MAX",
    "PORT_HBONE",
    "PORT_INBOUND",
    "PORT_OUTBOUND",
    "SCHEMA_VERSION",
    "SERVICE_LOCAL",
    "SERVICE_MAX",
    "STRUCTS",
    "VERDICT_MAX",
    "Address",
    "AgentDown",
    "Counter",
    "Decision",
    "Draw",
    "EventKind",
    "FlowKind",
    "LayoutMismatch",
    "MeshKind",
    "Path",
    "Paths",
    "PodFlag",
    "QnAddr",
    "QnArrived",
    "QnEvent",
    "QnFlow",
    "QnFlowKey",
    "QnHalf",
    "QnIp",
    "QnJoin",
    "QnListed",
    "QnPod",
    "QnService",
    "QnSettings",
    "QnSocket",
    "QnVerdict",
    "QnVerdictKey",
    "Role",
    "SameNode",
    "SockAddr",
    "check",
    "pack_addr",
    "pack_flow_key",
    "pack_ip",
    "pack_pod_address",
    "pack_shortcut_socket",
    "pack_socket",
    "unpack_addr",
    "unpack_ip",
)

STRUCTS: Final[dict[str, type[ctypes.Structure]]] = {
    "qn_addr": QnAddr,
    "qn_socket": QnSocket,
    "qn_pod": QnPod,
    "qn_ip": QnIp,
    "qn_settings": QnSettings,
    "qn_flow_key": QnFlowKey,
    "qn_flow": QnFlow,
    "qn_service": QnService,
    "qn_verdict_key": QnVerdictKey,
    "qn_verdict": QnVerdict,
    "qn_event": QnEvent,
    "qn_listed": QnListed,
    "qn_half": QnHalf,
    "qn_join": QnJoin,
    "qn_arrived": QnArrived,
}

CONSTANTS: Final[dict[str, int]] = {
    "QN_SCHEMA_VERSION": SCHEMA_VERSION,
    "QN_POD_MAX": POD_MAX,
    "QN_POD_ADDRS": POD_ADDRS,
    "QN_MESH_MAX": MESH_MAX,
    "QN_SERVICE_MAX": SERVICE_MAX,
    "QN_SERVICE_LOCAL": SERVICE_LOCAL,
    "QN_VERDICT_MAX": VERDICT_MAX,
    "QN_CONDEMNED_MAX": CONDEMNED_MAX,
    "QN_PORT_OUTBOUND": PORT_OUTBOUND,
    "QN_PORT_INBOUND": PORT_INBOUND,
    "QN_PORT_HBONE": PORT_HBONE,
}


class LayoutMismatch(RuntimeError):
    """The extension was built from another qanat.h than this module: rebuild (`make ext`)."""


def check(
    layout: Callable[[str], int],
    structs: Mapping[str, type[ctypes.Structure]] = STRUCTS,
    constants: Mapping[str, int] = CONSTANTS,
) -> None:
    """Compare every twin with the compiler's layout. Raises LayoutMismatch naming the first difference."""
    expected = dict(constants)
    for name, struct in structs.items():
        expected[name] = ctypes.sizeof(struct)
        for field in struct._fields_:
            expected[f"{name}.{field[0]}"] = getattr(struct, field[0]).offset
    for what, value in expected.items():
        if layout(what) != value:
            raise LayoutMismatch(f"{what}: {value} here, {layout(what)} in bpf/include; rebuild with `make ext`")
