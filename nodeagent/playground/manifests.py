# SPDX-License-Identifier: Apache-2.0
"""From YAML files to `objects`. A bad object is named with the path of the bad field and the last good one stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from nodeagent.playground.errors import ObjectError
from nodeagent.playground.objects import (
    NodeSpec,
    ObjectName,
    Objects,
    PodSpec,
    ServicePort,
    ServiceSpec,
    SliceSpec,
)
from nodeagent.playground.pod_manifest import read_pod
from nodeagent.playground.reader import Reader, about

DEFAULT_NODES = ("n1", "n2")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KINDS = ("Node", "Pod", "Service", "EndpointSlice")
Spec = NodeSpec | PodSpec | ServiceSpec | SliceSpec


class Manifests:
    """A directory of YAML, read again on every `load`; remembers the last good version of every object."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, dict[tuple[str, str], Spec]] = {}

    def load(self) -> tuple[Objects, list[ObjectError]]:
        errors: list[ObjectError] = []
        files: dict[Path, dict[tuple[str, str], Spec]] = {}
        for path in sorted(p for p in self.directory.glob("*.y*ml") if p.suffix in (".yaml", ".yml")):
            before = self._files.get(path, {})
            try:
                documents = list(yaml.load_all(path.read_text(), _LOADER))
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                errors.append(ObjectError(str(path), "", "", " ".join(str(error).split())))
                files[path] = before
                continue
            files[path] = _parse_file(path, documents, before, errors)
        self._files = files
        return _collect(files, errors), errors


def _parse_file(
    path: Path, documents: list[Any], before: Mapping[tuple[str, str], Spec], errors: list[ObjectError]
) -> dict[tuple[str, str], Spec]:
    found: dict[tuple[str, str], Spec] = {}
    for document in _flatten(documents):
        kind = document.get("kind") if isinstance(document, dict) else None
        if kind not in _KINDS:
            continue
        reader = Reader(str(path), document, f"{kind}/?", "")
        try:
            name = _name(reader)
            reader = about(reader, f"{kind}/{name}" if name.namespace else f"{kind}/{name.name}")
            key = (str(kind), str(name))
            try:
                found[key] = _PARSERS[kind](reader, name)
            except ObjectError:
                if key in before:
                    found[key] = before[key]
                raise
        except ObjectError as error:
            errors.append(error)
    return found


def _flatten(documents: Iterable[Any]) -> Iterable[Any]:
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            yield from document.get("items") or ()
        elif document is not None:
            yield document


def _collect(files: Mapping[Path, Mapping[tuple[str, str], Spec]], errors: list[ObjectError]) -> Objects:
    merged: dict[tuple[str, str], Spec] = {}
    for path, specs in files.items():
        for key, spec in specs.items():
            if key in merged:
                errors.append(ObjectError(str(path), "/".join(key), "metadata.name", "defined twice"))
                continue
            merged[key] = spec
    specs_sorted = [merged[key] for key in sorted(merged)]
    nodes = tuple(s for s in specs_sorted if isinstance(s, NodeSpec)) or tuple(NodeSpec(n) for n in DEFAULT_NODES)
    pods = tuple(s for s in specs_sorted if isinstance(s, PodSpec))
    return Objects(
        nodes=nodes,
        pods=tuple(_spread(pods, nodes, errors)),
        services=tuple(s for s in specs_sorted if isinstance(s, ServiceSpec)),
        slices=tuple(s for s in specs_sorted if isinstance(s, SliceSpec)),
    )


def _spread(pods: Iterable[PodSpec], nodes: tuple[NodeSpec, ...], errors: list[ObjectError]) -> Iterable[PodSpec]:
    """A node for every pod that names none: by its name's hash, so that other pods' coming and going moves nobody."""
    names = [node.name for node in nodes]
    for pod in pods:
        if not pod.node:
            digest = hashlib.sha256(str(pod.name).encode()).digest()
            yield replace(pod, node=names[digest[0] % len(names)])
        elif pod.node in names:
            yield pod
        else:
            errors.append(
                ObjectError("", f"Pod/{pod.name}", "spec.nodeName", f"no node {pod.node!r}; nodes: {', '.join(names)}")
            )


def _name(reader: Reader) -> ObjectName:
    metadata = reader.at("metadata")
    namespaced = reader.value.get("kind") != "Node"
    return ObjectName(metadata.at("namespace").text("default") if namespaced else "", metadata.at("name").text())


def _node(reader: Reader, name: ObjectName) -> NodeSpec:
    if len(name.name) > 40:
        raise reader.at("metadata").at("name").error("at most 40 characters in a playground")
    return NodeSpec(name.name)


def _service(reader: Reader, name: ObjectName) -> ServiceSpec:
    spec = reader.at("spec")
    given = [item for item in spec.at("clusterIPs").items() if item.value] or [spec.at("clusterIP")]
    given = [item for item in given if item.value not in (None, "")]
    headless = any(item.value == "None" for item in given)
    ports = []
    for item in spec.at("ports").items():
        port = item.at("port").port()
        target = item.at("targetPort")
        ports.append(
            ServicePort(
                name=item.at("name").text(""),
                protocol=item.at("protocol").text("TCP").lower(),
                port=port,
                target=target.text() if isinstance(target.value, str) else target.port(port),
            )
        )
    return ServiceSpec(
        name=name,
        addresses=() if headless else tuple(item.address() for item in given),
        headless=headless,
        ports=tuple(ports),
        selector=spec.at("selector").texts(),
        publish_not_ready=spec.at("publishNotReadyAddresses").flag(),
        families=_families(spec),
    )


def _families(spec: Reader) -> tuple[int, ...]:
    words = {"IPv4": 4, "IPv6": 6}
    given = [item.text() for item in spec.at("ipFamilies").items()]
    if any(word not in words for word in given):
        raise spec.at("ipFamilies").error("expected IPv4 or IPv6")
    wanted = tuple(words[word] for word in given) or (4,)
    if spec.at("ipFamilyPolicy").text("SingleStack") != "SingleStack":
        wanted = (*wanted, *({4, 6} - set(wanted)))
    return wanted


def _slice(reader: Reader, name: ObjectName) -> SliceSpec:
    service = reader.at("metadata").at("labels").texts().get("kubernetes.io/service-name", "")
    endpoints = [
        (a.address(), item.at("conditions").mapping().get("ready") is not False)
        for item in reader.at("endpoints").items()
        for a in item.at("addresses").items()
    ]
    ports = {item.at("name").text(""): item.at("port").port() for item in reader.at("ports").items()}
    return SliceSpec(name, service, tuple(endpoints), MappingProxyType(ports))


_PARSERS: dict[str, Any] = {"Node": _node, "Pod": read_pod, "Service": _service, "EndpointSlice": _slice}
