# SPDX-License-Identifier: Apache-2.0
"""mesh.json: what a playground consists of, for people, the CLI, and `qanat down` after a crash."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from nodeagent.playground.identity import ProcessId
from nodeagent.playground.names import MeshPaths

if TYPE_CHECKING:
    from nodeagent.playground.supervisor import Supervisor


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"


def describe(playground: Supervisor) -> str:
    """Everything, as JSON text."""
    own = ProcessId.of(os.getpid())
    state = {
        "mesh": playground.paths.name,
        "config": str(playground.directory),
        "state": playground.phase.value,
        "meshed": playground.with_mesh,
        "started": playground.started_at,
        "supervisor": own and asdict(own),
        "nodes": [
            {
                "name": node.name,
                "netns": node.netns,
                "addresses": [str(a) for a in node.addresses],
                "podCIDRs": [str(network) for network in node.pod_networks],
            }
            for node in playground.nodes.values()
        ],
        "programs": [
            {
                "name": program.name,
                "process": program.process and asdict(program.process),
                "running": program.is_running,
                "restarts": program.restarts,
                "exit": program.exit_code,
                "log": str(program.log_file),
            }
            for program in playground.programs
        ],
        "pods": [
            {
                "namespace": pod.spec.name.namespace,
                "name": pod.spec.name.name,
                "uid": pod.uid,
                "node": pod.node.name,
                "netns": pod.network.netns,
                "addresses": [str(a) for a in pod.addresses],
                "phase": pod.phase,
                "ready": pod.is_ready,
                "why": pod.why,
                "sandbox": pod.sandbox.process and asdict(pod.sandbox.process),
            }
            for pod in playground.pods.values()
        ],
        "services": [
            {"namespace": s.name.namespace, "name": s.name.name, "addresses": [str(a) for a in addresses]}
            for s, addresses in playground.service_addresses
        ],
        "errors": list(playground.errors),
    }
    return json.dumps(state, indent=1) + "\n"


def read(paths: MeshPaths) -> dict[str, Any] | None:
    """None when there is no such playground (or its file is unreadable)."""
    try:
        found = json.loads(paths.state.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def process_of(entry: Any) -> ProcessId | None:
    """A ``{"pid", "start"}`` of mesh.json."""
    if isinstance(entry, dict) and isinstance(entry.get("pid"), int) and isinstance(entry.get("start"), int):
        return ProcessId(entry["pid"], entry["start"])
    return None


def supervisor_of(paths: MeshPaths) -> ProcessId | None:
    """The living supervisor, if any."""
    try:
        pid, start = paths.pid.read_text().split()
    except (OSError, ValueError):
        return None
    found = ProcessId(int(pid), int(start))
    return found if found.is_alive else None
