# SPDX-License-Identifier: Apache-2.0
"""A Pod of YAML as a PodSpec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from ipaddress import ip_address

from nodeagent.playground.objects import (
    Container,
    Exec,
    HttpGet,
    IPAddress,
    ObjectName,
    PodSpec,
    Probe,
    RestartPolicy,
    TcpSocket,
)
from nodeagent.playground.reader import Reader

ADDRESS_ANNOTATION = "qanat.io/ip"


def read_pod(reader: Reader, name: ObjectName) -> PodSpec:
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


def _pod_addresses(reader: Reader, annotations: Mapping[str, str]) -> tuple[IPAddress, ...]:
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


def _container(reader: Reader, run_as: int | None) -> Container:
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


def _probe(reader: Reader, named: Mapping[str, int]) -> Probe | None:
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


def _probe_port(reader: Reader, named: Mapping[str, int]) -> int:
    if isinstance(reader.value, str) and not reader.value.isdigit():
        if reader.value not in named:
            raise reader.error(f"no container port is named {reader.value!r}")
        return named[reader.value]
    return reader.port()
