# SPDX-License-Identifier: Apache-2.0
"""`qanat check --cluster`: can the mesh be installed there; and where it is, does every part of it stand?"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import AsyncIterator, Mapping

from mesh.sources.kubernetes.api import Api, ApiError
from nodeagent.cli.check import Check
from nodeagent.cli.cluster import objects
from nodeagent.cli.cluster.apply import find
from nodeagent.cli.cluster.objects import NAMESPACE, Raw
from nodeagent.cli.cluster.remove import AGENT
from nodeagent.cli.cluster.rollout import is_ready, pods, standing

OLDEST = (1, 30)
OLDEST_KERNEL = (5, 15)
LIMIT = 500
MAX_NODES = 5000
LEASE_S = 60.0
DEFINITIONS = {
    "egresspolicies.qanat.io": "EgressPolicy",
    "authorizationpolicies.security.istio.io": "AuthorizationPolicy",
    "peerauthentications.security.istio.io": "PeerAuthentication",
}
OTHERS = {
    "app=ztunnel": "Istio ambient's ztunnel",
    "k8s-app=istio-cni-node": "Istio's CNI agent",
    "k8s-app=linkerd-cni": "Linkerd's CNI agent",
}
"""DaemonSets of meshes that capture the same connections, by label."""


async def run(api: Api) -> list[Check]:
    """Never raises for what the cluster says: that is a check that failed."""
    found: list[Check] = []
    try:
        version = await api.get("version")
    except ApiError as error:
        fix = "--kubeconfig FILE, --context NAME; is the cluster up?"
        return [Check("cluster", "API", "failed", str(error), fix)]
    found.append(_version(version))
    for part in (_permissions, _definitions, _other_meshes, _nodes):
        try:
            found += [one async for one in part(api)]
        except ApiError as error:
            found.append(Check("cluster", part.__name__.strip("_").replace("_", " "), "failed", str(error), _ADMIN))
    try:
        agent = await find(api, objects.path_of(AGENT))
        if agent is None:
            found.append(Check("mesh", "installed", "info", "not yet", "qanat install"))
        else:
            found += [one async for one in _installed(api)]
    except ApiError as error:
        found.append(Check("mesh", "installed", "failed", str(error), _ADMIN))
    return found


_ADMIN = "look as an administrator of the cluster"


def _check(group: str, name: str, ok: bool, detail: str, fix: str, *, otherwise: str = "failed") -> Check:
    return Check(group, name, "ok" if ok else otherwise, detail, "" if ok else fix)


def _version(version: Raw) -> Check:
    text = str(version.get("gitVersion") or "")
    known = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    fix = f"upgrade Kubernetes to {OLDEST[0]}.{OLDEST[1]} or newer"
    return _check("cluster", "API", known >= OLDEST, f"Kubernetes {text or 'of unknown version'}", fix)


async def _permissions(api: Api) -> AsyncIterator[Check]:
    refused = []
    for kind in objects.KINDS:
        path = objects.collection(kind)
        group = path.split("/")[1] if path.startswith("apis/") else ""
        attributes = {"group": group, "resource": path.rpartition("/")[2], "namespace": NAMESPACE}
        if not objects.is_namespaced(kind):
            del attributes["namespace"]
        for verb in ("create", "patch", "delete"):
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {**attributes, "verb": verb}},
            }
            answer = await api.send("POST", "apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
            if not (answer.get("status") or {}).get("allowed"):
                refused.append(f"{verb} {attributes['resource']}")
    detail = (
        f"may not {', '.join(refused[:6])}{', ...' if len(refused) > 6 else ''}" if refused else "enough to install"
    )
    yield _check("cluster", "permissions", not refused, detail, _ADMIN, otherwise="warning")


async def _definitions(api: Api) -> AsyncIterator[Check]:
    for name, kind in DEFINITIONS.items():
        found = await find(api, f"{objects.collection('CustomResourceDefinition')}/{name}")
        if found is None:
            yield Check("cluster", kind, "info", "not defined; qanat install defines it")
            continue
        whose = "ours" if objects.is_ours(found) else "another's; it stays as it is"
        served = [one["name"] for one in found["spec"]["versions"] if one.get("served")]
        wanted = "v1alpha1" if name.endswith(".qanat.io") else "v1"
        fix = f"the mesh reads {wanted}: upgrade whoever defines it"
        yield _check("cluster", kind, wanted in served, f"{whose}; serves {', '.join(served)}", fix)


async def _other_meshes(api: Api) -> AsyncIterator[Check]:
    seen = [
        f"{what} ({item['metadata']['namespace']}/{item['metadata']['name']})"
        for label, what in OTHERS.items()
        for item in (await api.list_page("apis/apps/v1/daemonsets", limit=LIMIT, selector=label)).items
    ]
    fix = "let each namespace be in one mesh only: not istio.io/dataplane-mode nor istio-injection beside qanat.io/mesh"
    yield _check("cluster", "other meshes", not seen, ", ".join(seen) or "none", fix, otherwise="warning")
    both = []
    page = await api.list_page("api/v1/namespaces", limit=LIMIT, selector="qanat.io/mesh=enabled")
    for item in page.items:
        labels = item["metadata"].get("labels") or {}
        if labels.get("istio-injection") == "enabled" or labels.get("istio.io/dataplane-mode") == "ambient":
            both.append(item["metadata"]["name"])
    if both:
        yield Check("cluster", "namespaces in two meshes", "failed", ", ".join(both), fix)


async def _all_nodes(api: Api) -> list[Raw]:
    found: list[Raw] = []
    token = ""
    while len(found) < MAX_NODES:
        page = await api.list_page("api/v1/nodes", limit=LIMIT, token=token)
        found += page.items
        token = page.next
        if not token:
            break
    return found


async def _nodes(api: Api) -> AsyncIterator[Check]:
    nodes = await _all_nodes(api)
    bad = 0
    for node in nodes:
        info = (node.get("status") or {}).get("nodeInfo") or {}
        kernel = str(info.get("kernelVersion") or "")
        known = tuple(int(part) for part in re.findall(r"\d+", kernel)[:2])
        system = info.get("operatingSystem") or "linux"
        if known < OLDEST_KERNEL or system != "linux":
            bad += 1
            detail = f"{system}, kernel {kernel or 'unknown'}"
            fix = "kernel 5.15 or newer with BTF, or keep the node out with nodeagent.nodeSelector"
            yield Check("cluster", f"node {node['metadata']['name']}", "failed", detail, fix)
    if not bad:
        kernels = sorted({str(node["status"]["nodeInfo"].get("kernelVersion")) for node in nodes})
        yield Check("cluster", "nodes", "ok", f"{len(nodes)}, kernels {', '.join(kernels[:5]) or 'none'}")


async def _installed(api: Api) -> AsyncIterator[Check]:
    for kind, name in (("Deployment", "controlplane"), ("DaemonSet", "nodeagent"), ("DaemonSet", "ztunnel")):
        path = f"{objects.collection(kind)}/qanat-{name}"
        found = await find(api, path)
        if found is None:
            yield Check("mesh", name, "failed", f"no {kind} qanat-{name}", "qanat install")
            continue
        now = standing({**found, "kind": kind})
        fix = f"kubectl -n {NAMESPACE} describe pods -l app.kubernetes.io/component={name}"
        yield _check("mesh", name, now.done, f"{now.ready} of {now.wanted} ready", fix)
    yield await _leader(api)
    roots = await find(api, f"{objects.collection('ConfigMap')}/qanat-ca-root")
    there = "BEGIN CERTIFICATE" in str(((roots or {}).get("data") or {}).get("root-cert.pem"))
    fix = f"kubectl -n {NAMESPACE} logs deployment/qanat-controlplane"
    yield _check("mesh", "roots of trust", there, "published" if there else "ConfigMap qanat-ca-root is missing", fix)
    for check in _by_node([one["metadata"]["name"] for one in await _all_nodes(api)], await pods(api)):
        yield check


async def _leader(api: Api) -> Check:
    spec = ((await find(api, f"{objects.collection('Lease')}/qanat-controlplane")) or {}).get("spec") or {}
    holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
    try:
        age = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(renewed)).total_seconds()
    except ValueError:
        age = float("inf")
    detail = f"{holder}, renewed {age:.0f} s ago" if holder and renewed else "nobody leads"
    fix = f"kubectl -n {NAMESPACE} logs deployment/qanat-controlplane; are the clocks right?"
    return _check("mesh", "leader", bool(holder) and age < LEASE_S, detail, fix)


def _by_node(nodes: list[str], found: list[Raw]) -> list[Check]:
    """One line for each node; one without any of our pods was left out on purpose (nodeSelector)."""
    there: dict[str, dict[str, Raw]] = {}
    for pod in sorted(found, key=is_ready):  # of two at a handover the ready one counts
        component = str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component"))
        there.setdefault(str((pod.get("spec") or {}).get("nodeName") or ""), {})[component] = pod
    return [_node(name, there.get(name, {})) for name in sorted(nodes)]


def _node(name: str, components: Mapping[str, Raw]) -> Check:
    ours = [one for one in ("nodeagent", "ztunnel") if one in components]
    if not ours:
        return Check("nodes", name, "info", "not in the mesh")
    said, ok = [], len(ours) == 2
    for one in ("nodeagent", "ztunnel"):
        pod = components.get(one)
        ready = pod is not None and is_ready(pod)
        ok = ok and ready
        statuses = ((pod or {}).get("status") or {}).get("containerStatuses") or ()
        restarts = sum(int(status.get("restartCount") or 0) for status in statuses)
        word = "ready" if ready else "missing" if pod is None else "not ready"
        said.append(f"{one} {word}{f' ({restarts} restarts)' if restarts else ''}")
    fix = f"kubectl -n {NAMESPACE} get pods -o wide --field-selector spec.nodeName={name}"
    return _check("nodes", name, ok, ", ".join(said), fix)
