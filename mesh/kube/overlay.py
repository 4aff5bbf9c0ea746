# SPDX-License-Identifier: Apache-2.0
"""What an API adds to the objects that users write."""

from __future__ import annotations

from dataclasses import replace

from mesh.kube.objects import KubeObject, PodObject, ServiceObject


def overlaid(base: KubeObject, overlay: KubeObject) -> KubeObject:
    """A user's object with what ``overlay``, the same one from elsewhere, knows of its state."""
    match base, overlay:
        case PodObject(), PodObject():
            return replace(base, status=overlay.status, node=base.node or overlay.node)
        case ServiceObject(), ServiceObject() if not base.cluster_ips and not base.headless and not base.external_name:
            return replace(base, cluster_ips=overlay.cluster_ips, headless=overlay.headless)
        case _:
            return base
