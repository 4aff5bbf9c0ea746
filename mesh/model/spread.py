# SPDX-License-Identifier: Apache-2.0
"""Which of a service's endpoints a client may be given: the rules of kube-proxy (pkg/proxy/topology.go, Kubernetes
1.36), so that a service behaves the same inside the mesh. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.model.workload import Endpoint, Service


def candidates(service: Service, ready: Sequence[Endpoint], node: str) -> list[Endpoint]:
    """``ready``: the ready endpoints of one port; ``node``: the client's.

    internalTrafficPolicy Local leaves those of the node, also when there are none. Otherwise hints count where every
    endpoint has some and one is meant for this node (PreferSameNode) or, failing that, for its zone. The zone is known
    from an endpoint that is on the node: where there is none, zones do not count (Nodes are not read).
    """
    if service.internal_local:
        return [endpoint for endpoint in ready if endpoint.node == node]
    zone = next((endpoint.zone for endpoint in ready if endpoint.node == node), "")
    for name, hints in ((node, [e.for_nodes for e in ready]), (zone, [e.for_zones for e in ready])):
        if name and all(hints) and any(name in hint for hint in hints):
            return [endpoint for endpoint, hint in zip(ready, hints, strict=True) if name in hint]
    return list(ready)
