# SPDX-License-Identifier: Apache-2.0
"""From YAML files to `objects`. A bad object is named with the path of the bad field and the last good one stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from nodeagent.playground.errors import ObjectError
from nodeagent.playground.objects import (
    Container,
    Exec,
    HttpGet,
    IPAddress,
    NodeSpec,
    ObjectName,
    Objects,
    PodSpec,
    Probe,
    RestartPolicy,
    ServicePort,
    ServiceSpec,
    SliceSpec,
    TcpSocket,
)

DEFAULT_NODES = ("n1", "n2")
ADDRESS_ANNOTATION = "qanat.io/ip"
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
        reader = _Reader(str(path), document, f"{kind}/?", "")
        try:
            name = _name(reader)
            reader = _about(reader, f"{kind}/{name}" if name.namespace else f"{kind}/{name.name}")
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


class _Reader:
    """A place in a parsed document that knows its path. ``Any`` ends here."""

    def __init__(self, file: str, value: Any, obj: str, path: str) -> None:
        self.file, self.value, self.obj, self.path = file, value, obj, path

    def error(self, message: str) -> ObjectError:
        return ObjectError(self.file, self.obj, self.path or "(object)", message)

    def at(self, key: str) -> _Reader:
        value = self.mapping().get(key)
        return _Reader(self.file, value, self.obj, f"{self.path}.{key}" if self.path else key)

    def mapping(self) -> dict[str, Any]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"expected a mapping, found {_kind(self.value)}")
        return self.value

    def items(self) -> list[_Reader]:
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, found {_kind(self.value)}")
        return [_Reader(self.file, v, self.obj, f"{self.path}[{i}]") for i, v in enumerate(self.value)]

    def text(self, default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str) or (default is None and not self.value):
            raise self.error(f"expected text, found {_kind(self.value)}")
        return self.value

    def number(self, default: float | None = None, low: float = 0, high: float = 2**31) -> float:
        value = default if self.value is None else self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(f"expected a number from {low:g} to {high:g}, found {self.value!r}")
        return value

    def port(self, default: int | None = None) -> int:
        return int(self.number(default, 1, 65535))

    def flag(self) -> bool:
        if self.value is None:
            return False
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, found {_kind(self.value)}")
        return self.value

    def texts(self) -> Mapping[str, str]:
        for key, value in self.mapping().items():
            if not isinstance(value, str):
                raise self.at(str(key)).error(f"expected text, found {_kind(value)} (quote it)")
        return MappingProxyType(dict(self.mapping()))

    def address(self) -> IPAddress:
        try:
            return ip_address(self.text())
        except ValueError as error:
            raise self.error(str(error)) from error


def _about(reader: _Reader, obj: str) -> _Reader:
    return _Reader(reader.file, reader.value, obj, reader.path)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:60]


def _name(reader: _Reader) -> ObjectName:
    metadata = reader.at("metadata")
    namespaced = reader.value.get("kind") != "Node"
    return ObjectName(metadata.at("namespace").text("default") if namespaced else "", metadata.at("name").text())


def _node(reader: _Reader, name: ObjectName) -> NodeSpec:
    if len(name.name) > 40:
        raise reader.at("metadata").at("name").error("at most 40 characters in a playground")
    return NodeSpec(name.name)


def _pod(reader: _Reader, name: ObjectName) -> PodSpec:
    spec = reader.at("spec")
    annotations = reader.at("metadata").at("annotations").texts()
    policy = spec.at("restartPolicy")
    try:
        restart = RestartPolicy(policy.text("Always"))
    except ValueError as error:
        raise policy.error("expected Always, OnFailure or Never") from error
    user = spec.at("securityContext").at("runAsUser")
    run_as = None if user.value is None else int(user.number())
    containers = tuple(_container(item, run_as) for item in spec.at("containers").items())
    if not containers:
        raise spec.at("containers").error("a pod needs a container")
    digest = hashlib.sha256(json.dumps([spec.value, annotations.get(ADDRESS_ANNOTATION)], default=str).encode())
    return PodSpec(
        name=name,
        labels=reader.at("metadata").at("labels").texts(),
        annotations=annotations,
        service_account=spec.at("serviceAccountName").text("default"),
        node=spec.at("nodeName").text(""),
        containers=containers,
        restart_policy=restart,
        grace_s=spec.at("terminationGracePeriodSeconds").number(5),
        host_network=spec.at("hostNetwork").flag(),
        addresses=_pod_addresses(reader, annotations),
        digest=digest.hexdigest(),
    )


def _pod_addresses(reader: _Reader, annotations: Mapping[str, str]) -> tuple[IPAddress, ...]:
    status = reader.at("status")
    if ADDRESS_ANNOTATION in annotations:
        at = reader.at("metadata").at("annotations").at(ADDRESS_ANNOTATION)
        try:
            return tuple(ip_address(part.strip()) for part in at.text().split(","))
        except ValueError as error:
            raise at.error(str(error)) from error
    given = [item.at("ip").address() for item in status.at("podIPs").items()]
    if not given and status.at("podIP").value is not None:
        given = [status.at("podIP").address()]
    return tuple(given)


def _container(reader: _Reader, run_as: int | None) -> Container:
    command = [item.text("") for key in ("command", "args") for item in reader.at(key).items()]
    if not command:
        raise reader.at("command").error("a playground runs commands of this machine, not images: give one")
    env, fields = [], []
    for item in reader.at("env").items():
        source = item.at("valueFrom").at("fieldRef").at("fieldPath")
        if source.value is not None:
            fields.append((item.at("name").text(), source.text()))
        else:
            env.append((item.at("name").text(), item.at("value").text("")))
    ports = tuple((item.at("name").text(""), item.at("containerPort").port()) for item in reader.at("ports").items())
    named = dict(ports)
    user = reader.at("securityContext").at("runAsUser")
    return Container(
        name=reader.at("name").text("main"),
        command=tuple(command),
        env=tuple(env),
        fields=tuple(fields),
        working_dir=reader.at("workingDir").text(""),
        ports=ports,
        run_as_user=run_as if user.value is None else int(user.number()),
        readiness=_probe(reader.at("readinessProbe"), named),
        liveness=_probe(reader.at("livenessProbe"), named),
        startup=_probe(reader.at("startupProbe"), named),
    )


def _probe(reader: _Reader, named: Mapping[str, int]) -> Probe | None:
    if reader.value is None:
        return None
    http, tcp, command = reader.at("httpGet"), reader.at("tcpSocket"), reader.at("exec")
    action: HttpGet | TcpSocket | Exec
    if http.value is not None:
        headers = tuple((h.at("name").text(), h.at("value").text("")) for h in http.at("httpHeaders").items())
        action = HttpGet(http.at("path").text("/"), _probe_port(http.at("port"), named), headers)
    elif tcp.value is not None:
        action = TcpSocket(_probe_port(tcp.at("port"), named))
    elif command.value is not None:
        action = Exec(tuple(item.text("") for item in command.at("command").items()))
    else:
        raise reader.error("expected httpGet, tcpSocket or exec")
    return Probe(
        action=action,
        initial_delay_s=reader.at("initialDelaySeconds").number(0),
        period_s=max(0.1, reader.at("periodSeconds").number(10)),
        timeout_s=reader.at("timeoutSeconds").number(1, 0.1),
        failure_threshold=int(reader.at("failureThreshold").number(3, 1)),
        success_threshold=int(reader.at("successThreshold").number(1, 1)),
    )


def _probe_port(reader: _Reader, named: Mapping[str, int]) -> int:
    if isinstance(reader.value, str) and not reader.value.isdigit():
        if reader.value not in named:
            raise reader.error(f"no container port is named {reader.value!r}")
        return named[reader.value]
    return reader.port()


def _service(reader: _Reader, name: ObjectName) -> ServiceSpec:
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


def _families(spec: _Reader) -> tuple[int, ...]:
    words = {"IPv4": 4, "IPv6": 6}
    given = [item.text() for item in spec.at("ipFamilies").items()]
    if any(word not in words for word in given):
        raise spec.at("ipFamilies").error("expected IPv4 or IPv6")
    wanted = tuple(words[word] for word in given) or (4,)
    if spec.at("ipFamilyPolicy").text("SingleStack") != "SingleStack":
        wanted = (*wanted, *({4, 6} - set(wanted)))
    return wanted


def _slice(reader: _Reader, name: ObjectName) -> SliceSpec:
    service = reader.at("metadata").at("labels").texts().get("kubernetes.io/service-name", "")
    endpoints = [
        (a.address(), item.at("conditions").mapping().get("ready") is not False)
        for item in reader.at("endpoints").items()
        for a in item.at("addresses").items()
    ]
    ports = {item.at("name").text(""): item.at("port").port() for item in reader.at("ports").items()}
    return SliceSpec(name, service, tuple(endpoints), MappingProxyType(ports))


_PARSERS: dict[str, Any] = {"Node": _node, "Pod": _pod, "Service": _service, "EndpointSlice": _slice}
