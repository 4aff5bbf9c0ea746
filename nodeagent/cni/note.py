# SPDX-License-Identifier: Apache-2.0
"""What the plugin goes by while no agent runs: which namespaces are in the mesh, as of the agent's last snapshot."""

from __future__ import annotations

import json
from pathlib import Path

from mesh.kube.parse import MESH_LABEL
from mesh.model.snapshot import MeshSnapshot


def note_of(snapshot: MeshSnapshot) -> dict[str, bool]:
    """False: the namespace is declared, does not carry the label and no pod of it is captured."""
    captured = {workload.namespace for workload in snapshot.workloads.values() if workload.captured}
    return {
        name: name in captured or namespace.labels.get(MESH_LABEL) == "enabled"
        for name, namespace in snapshot.namespaces.items()
    }


def write(path: Path, note: dict[str, bool]) -> None:
    """Atomically; the plugin reads it as root and trusts nobody else's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(note, sort_keys=True))
    fresh.chmod(0o600)
    fresh.rename(path)
