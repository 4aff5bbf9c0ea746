# SPDX-License-Identifier: Apache-2.0
"""Who must be reached through a waypoint: Istio's labels on pods, services and namespaces."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.kube.objects import NamespaceObject, ObjectRef
from mesh.kube.settings import TranslateSettings, Waypoints
from mesh.model.workload import Waypoint
from mesh.printable import printable

USE = "istio.io/use-waypoint"
USE_NAMESPACE = "istio.io/use-waypoint-namespace"
NOT = "none"


def waypoint_of(
    ref: ObjectRef, labels: Mapping[str, str], namespace: NamespaceObject | None, settings: TranslateSettings
) -> Waypoint | None:
    """The object's own label wins over its namespace's, also where it says ``none``. Which traffic a waypoint is for
    stands in its Gateway, which nobody reads yet: so it counts for all."""
    if settings.waypoints is Waypoints.OPEN:
        return None
    for owner, found in ((ref, labels), (namespace.ref if namespace else None, namespace.labels if namespace else {})):
        if owner is not None and USE in found:
            if found[USE] == NOT:
                return None
            where = found.get(USE_NAMESPACE) or ref.namespace
            return Waypoint(printable(where, 63), printable(found[USE], 63), f"{owner} ({USE})")
    return None
