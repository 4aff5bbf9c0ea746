"""/config_dump in the shape of Istio's ztunnel, so that `istioctl ztunnel-config --file` reads it.

Pure functions from our values to JSON-ready ones; keys as ztunnel serialises them (istio-ambient.md 7.5).
"""

from __future__ import annotations

import base64
import datetime as dt
import time
from collections.abc import Iterable, Sequence

from mesh.model.policy import EgressPolicy, PeerAuthentication, Policy
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import Health, Service, Waypoint, Workload
from mesh.policy.evaluate import ROOT_NAMESPACE
from ztunnel.dataplane.values import Addr, Direction, Event, Path
from ztunnel.identity.entry import CertificateStatus, State
from ztunnel.identity.revocation import RevocationStatus
from ztunnel.identity.x509 import CertificateInfo
from ztunnel.inpod import LocalPod

Json = dict[str, object]

_CERTIFICATE_STATES = {
    State.INITIALIZING: "Initializing",
    State.VALID: "Available",
    State.EXPIRING: "Available",
    State.EXPIRED: "Unavailable: expired",
}


def workloads(snapshot: MeshSnapshot) -> list[Json]:
    """Sorted by name, with the services each belongs to."""
    services: dict[str, set[str]] = {}
    for key, endpoints in snapshot.endpoints.items():
        for endpoint in endpoints:
            if endpoint.workload is not None:
                services.setdefault(endpoint.workload, set()).add(key)
    return [_workload(one, sorted(services.get(one.uid, ()))) for one in snapshot.workloads.values()]


def policies(snapshot: MeshSnapshot) -> list[Json]:
    """ztunnel's keys, one empty group a rule, and ours: what a rule says stands in the user's object. ``httpFields``:
    fields that only a waypoint could judge."""
    return [_policy(one) for one in snapshot.policies.values()]


def _policy(one: Policy) -> Json:
    common: Json = {
        "name": one.name,
        "namespace": one.namespace,
        "scope": _scope(one),
        "selector": dict(one.selector),
        "rejected": one.rejected,
    }
    if isinstance(one, PeerAuthentication):
        ports = {str(port): mode.value for port, mode in one.ports.items()}
        return {**common, "kind": "PeerAuthentication", "action": one.mode.value, "portLevel": ports, "rules": []}
    if isinstance(one, EgressPolicy):
        hosts = sorted({host for rule in one.rules for target in rule.targets for host in target.hosts})
        rules: list[object] = [[] for _ in one.rules]
        return {**common, "kind": "EgressPolicy", "action": "Allow", "hosts": hosts, "rules": rules}
    return {
        **common,
        "kind": "AuthorizationPolicy",
        "action": one.action.value.capitalize(),
        "dryRun": one.dry_run,
        "rules": [[] for _ in one.rules],
        "httpFields": [path for rule in one.rules for path in rule.http],
    }


def _scope(one: Policy) -> str:
    if one.selector:
        return "WorkloadSelector"
    return "Global" if one.namespace == ROOT_NAMESPACE else "Namespace"


def _workload(one: Workload, services: Sequence[str]) -> Json:
    return {
        "uid": one.uid,
        "workloadIps": [str(address) for address in one.addresses],
        "protocol": one.protocol.value,
        "networkMode": one.network_mode.value,
        "name": one.name,
        "namespace": one.namespace,
        "trustDomain": one.trust_domain,
        "serviceAccount": one.service_account,
        "workloadName": one.workload_name or one.name,
        "workloadType": one.workload_type,
        "canonicalName": one.canonical_name,
        "canonicalRevision": one.canonical_revision,
        "clusterId": one.uid.partition("/")[0],
        "network": "",
        "hostname": "",
        "node": one.node or "",
        "status": "Healthy" if one.health is Health.HEALTHY else "Unhealthy",
        "locality": {},
        "services": list(services),
        "captured": one.captured,
        **_waypoint(one.waypoint),
    }


def _waypoint(one: Waypoint | None) -> Json:
    return {"waypoint": {"destination": f"{one.namespace}/{one.name}"}} if one else {}


def services(snapshot: MeshSnapshot) -> list[Json]:
    return [_service(one, snapshot) for one in snapshot.services.values()]


def _service(one: Service, snapshot: MeshSnapshot) -> Json:
    endpoints: dict[str, Json] = {}
    for endpoint in snapshot.endpoints_of(one.key):
        key = endpoint.workload or str(endpoint.address)
        entry = endpoints.setdefault(
            key,
            {
                "workloadUid": endpoint.workload or "",
                "service": one.key,
                "address": str(endpoint.address),
                "port": {},
                "status": "Healthy" if endpoint.healthy else "Unhealthy",
            },
        )
        ports = entry["port"]
        assert isinstance(ports, dict)  # made three lines above
        ports[str(endpoint.service_port)] = endpoint.port
    return {
        "name": one.name,
        "namespace": one.namespace,
        "hostname": one.hostname,
        "vips": [f"/{vip}" for vip in one.vips],  # <network>/<address>, our network has no name
        "ports": {str(port.port): port.target if isinstance(port.target, int) else 0 for port in one.ports},
        "endpoints": endpoints,
        "subjectAltNames": [],
        "ipFamilies": _families(one),
        **_waypoint(one.waypoint),
    }


def _families(one: Service) -> str:
    versions = {vip.version for vip in one.vips}
    return "Dual" if len(versions) == 2 else "IPv6" if versions == {6} else "IPv4"


def certificates(found: Iterable[CertificateStatus]) -> list[Json]:
    return [
        {
            "identity": str(one.identity),
            "state": _CERTIFICATE_STATES.get(one.state, f"Unavailable: {one.error}"),
            # Ours, beside what istioctl reads.
            **_life(one),
            "certChain": [_certificate(cert) for cert in (one.certificate.chain if one.certificate else ())],
            "rootCerts": [_certificate(cert) for cert in (one.certificate.roots if one.certificate else ())],
        }
        for one in found
    ]


def _certificate(one: CertificateInfo) -> Json:
    return {
        "pem": base64.b64encode(one.pem.encode("ascii")).decode("ascii"),
        "serialNumber": one.serial,
        "validFrom": _moment(one.not_before),
        "expirationTime": _moment(one.not_after),
        "subject": one.subject,
        "issuer": one.issuer,
        "fingerprint": one.fingerprint,
        "valid": one.not_before <= dt.datetime.now(dt.UTC) < one.not_after,
    }


def _life(one: CertificateStatus) -> Json:
    return {
        "stateName": one.state.value,
        "nextAction": None if one.next_at is None else _moment(dt.datetime.fromtimestamp(one.next_at, dt.UTC)),
        "failures": one.failures,
        "error": one.error,
    }


def certificate_states(found: Iterable[CertificateStatus]) -> list[Json]:
    """Ours, for `qanat certs`: what the Istio shape has no room for."""
    shown: list[Json] = []
    for one in found:
        certificate = one.certificate
        shown.append(
            {
                "identity": str(one.identity),
                "state": one.state.value,
                "serial": certificate.serial if certificate else "",
                "notBefore": _moment(certificate.not_before) if certificate else None,
                "notAfter": _moment(certificate.not_after) if certificate else None,
                "nextAction": None if one.next_at is None else _moment(dt.datetime.fromtimestamp(one.next_at, dt.UTC)),
                "failures": one.failures,
                "error": one.error,
                "rootSerials": [root.serial for root in (certificate.roots if certificate else ())],
            }
        )
    return shown


def revocations(found: RevocationStatus | None) -> Json | None:
    """For `qanat certs` and `qanat status`; None = no file is followed."""
    if found is None:
        return None
    in_force = found.in_force
    late = in_force.next_update_s if in_force else 0
    return {
        "file": found.file,
        "lists": in_force.lists if in_force else 0,
        "serials": in_force.serials if in_force else 0,
        "nextUpdate": _moment(dt.datetime.fromtimestamp(late, dt.UTC)) if late else None,
        "late": found.is_late(time.time()),
        "digest": found.digest,
        "error": found.error,
    }


def _moment(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def workload_state(pods: Iterable[LocalPod], live: Iterable[Event]) -> Json:
    """By pod uid, with its open connections."""
    inbound: dict[int, list[Json]] = {}
    outbound: dict[int, list[Json]] = {}
    for event in live:
        table = inbound if event.direction is Direction.INBOUND else outbound
        table.setdefault(event.pod_id, []).append(_connection(event))
    return {
        pod.uid: {
            "state": "Up",
            "connections": {"inbound": inbound.get(pod.id, []), "outbound": outbound.get(pod.id, [])},
            "info": {
                "name": pod.info.name,
                "namespace": pod.info.namespace,
                "trustDomain": pod.identity.trust_domain,
                "serviceAccount": pod.info.service_account,
            },
        }
        for pod in pods
    }


def _connection(event: Event) -> Json:
    actual = event.peer if event.direction is Direction.OUTBOUND and event.peer else event.dst
    return {
        "src": show(event.src),
        "originalDst": show(event.dst),
        "actualDst": show(actual),
        "protocol": "HBONE" if event.path is Path.TUNNEL else "TCP",
    }


def connection(event: Event, uid: str) -> Json:
    """One live connection, all we know of it; `uid` of the pod it belongs to."""
    return {
        "id": event.id,
        "pod": uid,
        "direction": event.direction.name.lower(),
        "path": event.path.name.lower(),
        "src": show(event.src),
        "dst": show(event.dst),
        "peer": show(event.peer),
        "srcIdentity": event.src_identity,
        "dstIdentity": event.dst_identity,
        "service": event.service,
        "startUnixUs": event.start_unix_us,
        "durationUs": event.duration_us,
        "connectUs": event.connect_us,
        "handshakeUs": event.handshake_us,
        "bytesSent": event.bytes_sent,
        "bytesRecv": event.bytes_recv,
        "retries": event.retries,
        "mtls": event.path is Path.TUNNEL,
        "rule": event.rule,
        "noted": list(event.noted),
    }


def show(addr: Addr | None) -> str:
    if addr is None:
        return ""
    return f"[{addr.ip}]:{addr.port}" if addr.ip.version == 6 else f"{addr.ip}:{addr.port}"
