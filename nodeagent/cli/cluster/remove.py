# SPDX-License-Identifier: Apache-2.0
"""Takes the mesh out of a cluster: first the nodes' pods out of the mesh, then the objects."""

from __future__ import annotations

from mesh.sources.kubernetes.api import Api, NotServed
from nodeagent.cli.cluster import objects
from nodeagent.cli.cluster.apply import Tell, find
from nodeagent.cli.cluster.objects import NAMESPACE, Raw
from nodeagent.cli.cluster.rollout import LIMIT, wait_gone, wait_no_pods, wait_ready
from nodeagent.cli.errors import CliError

AGENT: Raw = {"kind": "DaemonSet", "metadata": {"name": "qanat-nodeagent", "namespace": NAMESPACE}}
DETACH = {
    "spec": {
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0}},
        "template": {
            "spec": {
                "containers": [{"name": "nodeagent", "env": [{"name": "QANAT_AGENT_DETACH_ON_EXIT", "value": "true"}]}]
            }
        },
    }
}
"""Agents that end from now on take capture, CNI entry and files with them."""
_LAST = ("Namespace", "CustomResourceDefinition")


async def uninstall(api: Api, *, crds: bool, force: bool, timeout_s: float, tell: Tell) -> list[str]:
    """What was deleted. `force`: nodes that cannot be un-enrolled keep what they have. Raises ApiError, CliError."""
    await _unenrol(api, force=force, timeout_s=timeout_s, tell=tell)
    deleted: list[str] = []
    for kind in objects.WORKLOADS:
        deleted += await _delete_all(api, await _ours(api, kind), tell)
    await wait_no_pods(api, "", timeout_s)  # they write objects of their own while they live
    for kind in reversed([one for one in objects.KINDS if one not in (*objects.WORKLOADS, *_LAST)]):
        deleted += await _delete_all(api, await _ours(api, kind), tell)
    last = [one for one in await _ours(api, "Namespace") if one["metadata"]["name"] == NAMESPACE]
    last += await _ours(api, "CustomResourceDefinition") if crds else []
    deleted += await _delete_all(api, last, tell)
    await wait_gone(api, [objects.path_of(one) for one in last], timeout_s)
    return deleted


async def _unenrol(api: Api, *, force: bool, timeout_s: float, tell: Tell) -> None:
    path = objects.path_of(AGENT)
    found = await find(api, path)
    if found is None:
        return
    try:
        if not found["metadata"].get("deletionTimestamp"):
            tell("DaemonSet qanat-nodeagent: told to take the mesh off its nodes at its end")
            await api.send("PATCH", path, DETACH, "application/strategic-merge-patch+json")
            await wait_ready(api, [AGENT], timeout_s, tell)
            await api.send("DELETE", path, {"propagationPolicy": "Background"})
        await wait_no_pods(api, "nodeagent", timeout_s)
    except CliError as error:
        if not force:
            raise CliError(
                f"not every node could be un-enrolled, nothing was deleted: {error.message}",
                "qanat uninstall again when they are back, --force to go on without them, or qanat install to stay",
            ) from error
        tell(f"going on by force: {error.message}")
    tell("nodes: no pod is captured any more")


async def _ours(api: Api, kind: str) -> list[Raw]:
    page = await api.list_page(objects.collection(kind), limit=LIMIT, selector=objects.OURS)
    return [{**one, "kind": kind} for one in page.items]


async def _delete_all(api: Api, found: list[Raw], tell: Tell) -> list[str]:
    deleted = []
    for one in found:
        try:
            await api.send("DELETE", objects.path_of(one), {"propagationPolicy": "Background"})
        except NotServed:
            continue
        tell(f"{objects.title(one)}: deleted")
        deleted.append(objects.title(one))
    return deleted
