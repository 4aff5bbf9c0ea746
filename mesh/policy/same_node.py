# SPDX-License-Identifier: Apache-2.0
"""How two pods of one node talk: `qanat.io/same-node` on the pod, else on its namespace, else the mesh's setting."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import Workload

ANNOTATION = "qanat.io/same-node"


class SameNode(Enum):
    """DIRECT: plain TCP from pod to pod, nothing between. SHORTCUT: that, and the kernel may move the bytes from socket
    to socket. ENCRYPT: through the tunnel, as between nodes."""

    DIRECT = "direct"
    SHORTCUT = "shortcut"
    ENCRYPT = "encrypt"


def fault(annotations: Mapping[str, str]) -> str | None:
    """What is wrong with the annotation, for the person who wrote it."""
    text = annotations.get(ANNOTATION)
    if text is None or text in {mode.value for mode in SameNode}:
        return None
    return f"expected direct, shortcut or encrypt, got {text!r}; taken as encrypt"


def _read(annotations: Mapping[str, str]) -> SameNode | None:
    """A word we do not know closes."""
    text = annotations.get(ANNOTATION)
    if text is None:
        return None
    return SameNode(text) if fault(annotations) is None else SameNode.ENCRYPT


def wish(snapshot: MeshSnapshot, workload: Workload, default: SameNode) -> SameNode:
    """What one of the two ends asks for."""
    own = _read(workload.annotations)
    if own is None and (namespace := snapshot.namespaces.get(workload.namespace)) is not None:
        own = _read(namespace.annotations)
    return default if own is None else own


def settle(one: SameNode, other: SameNode) -> SameNode:
    """The stricter of two wishes: encryption if either asks for it, the shortcut only if both do."""
    if SameNode.ENCRYPT in (one, other):
        return SameNode.ENCRYPT
    return one if one is other else SameNode.DIRECT
