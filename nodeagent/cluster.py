# SPDX-License-Identifier: Apache-2.0
"""What the agent does beside everything else when its node belongs to a cluster: pods by the container runtime, the CNI
plugin's socket, and the plugin's place in the node's CNI configuration."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import Workload
from nodeagent.cni import note
from nodeagent.cni.admission import Admission
from nodeagent.cni.install import CniConfigError, CniInstall
from nodeagent.cni.server import CniServer
from nodeagent.config import ClusterSettings, CniSettings
from nodeagent.pods.cri import CriRuntime
from nodeagent.pods.discovery import Observation
from nodeagent.pods.enroller import Enroller
from nodeagent.pods.runtime import RuntimePods

log = logging.getLogger(__name__)

KEEP_S = 5.0
"""Others rewrite CNI configurations: looked at so often."""


def plugin_of(settings: CniSettings) -> CniInstall:
    entry = {
        "agentSocket": str(settings.socket),
        "namespacesFile": str(settings.namespaces),
        "waitSeconds": settings.wait_s,
        "onAgentDown": settings.on_agent_down,
    }
    return CniInstall(settings.binary, settings.bin_dir, settings.conf_dir, entry)


class ClusterNode:
    """Without CNI settings there is no plugin on this node: pods are found when the runtime tells."""

    def __init__(self, node: str, enroller: Enroller, settings: ClusterSettings) -> None:
        cni, cri_socket = settings.cni, settings.cri_socket
        self._node = node
        self._snapshot = MeshSnapshot.build(0)
        self._cni = cni
        self._noted: dict[str, bool] | None = None
        self.problem = ""
        """Of the plugin's place in the configuration."""
        runtime = CriRuntime(cri_socket) if cri_socket else None
        self.pods = RuntimePods(runtime, lambda: self._snapshot.on_node(node))
        admission = Admission(
            self.pods, self._workload_of, enroller.is_captured, enroller.problem_of, enroller.is_served
        )
        self._server = CniServer(cni.socket, admission.handle) if cni else None

    def parts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        if self._cni is None or self._server is None:
            return {}
        keep = functools.partial(self._keep_installed, plugin_of(self._cni))
        return {"CNI socket": self._server.run, "CNI configuration": keep}

    def watch(self) -> AsyncIterator[Observation]:
        return self.pods.watch()

    def set_snapshot(self, snapshot: MeshSnapshot) -> None:
        self._snapshot = snapshot
        self.pods.wake()
        if self._cni is not None:
            fresh = note.note_of(snapshot)
            if fresh != self._noted:
                note.write(self._cni.namespaces, fresh)
                self._noted = fresh

    def _workload_of(self, namespace: str, name: str, uid: str) -> Workload | None:
        for workload in self._snapshot.on_node(self._node):
            if (workload.namespace, workload.name) == (namespace, name) and uid in ("", workload.pod_uid):
                return workload
        return None

    async def _keep_installed(self, install: CniInstall) -> None:
        while True:
            try:
                if await asyncio.to_thread(install.ensure):
                    log.info("CNI plugin installed", extra={"configuration": install.conf_dir})
                problem = ""
            except (CniConfigError, OSError) as error:
                problem = f"CNI plugin not installed: {error}"
            if problem and problem != self.problem:
                log.warning("%s", problem)
            self.problem = problem
            await asyncio.sleep(KEEP_S)
