# SPDX-License-Identifier: Apache-2.0
"""Where the API keeps an object that is named in words."""

from __future__ import annotations

from mesh.sources.kubernetes.reflector import Resource
from mesh.sources.kubernetes.source import RESOURCES

_BY_KIND = {one.kind: one for one in RESOURCES}


def kind_of(object_: str) -> str:
    """Of "Kind namespace/name" or "Kind name"; empty for a kind the mesh does not read."""
    kind = object_.partition(" ")[0]
    return kind if kind in _BY_KIND else ""


def resource_of(object_: str) -> Resource:
    return _BY_KIND[kind_of(object_)]


def path_of(object_: str) -> str:
    namespace, _, name = object_.partition(" ")[2].rpartition("/")
    prefix, _, plural = resource_of(object_).path.rpartition("/")
    return f"{prefix}/{f'namespaces/{namespace}/' if namespace else ''}{plural}/{name}"
