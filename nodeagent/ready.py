# SPDX-License-Identifier: Apache-2.0
"""`python -m nodeagent.ready`: is the agent of this node ready? Kubelet's probe, for the agent has no TCP port.

Reads the variables that `python -m nodeagent` reads. Exit code 0 or 1; a line on standard error says why not."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

WAIT_S = 3.0
REQUEST = b"GET /healthz/ready HTTP/1.0\r\n\r\n"


def place(environment: Mapping[str, str]) -> Path:
    """The agent's socket. Raises KeyError."""
    node = environment.get("QANAT_NODE") or environment["NODE_NAME"]
    root = Path(environment.get("QANAT_RUN_DIR", "/run/qanat"))
    return root / environment.get("QANAT_MESH", "default") / "nodes" / node / "agent.sock"


def problem(path: Path) -> str:
    """Empty: ready."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(WAIT_S)
            connection.connect(str(path))
            connection.sendall(REQUEST)
            answer = connection.recv(4096)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    status = answer.split(b"\r\n", 1)[0].decode("ascii", "replace")
    return "" if status.split(" ")[1:2] == ["200"] else f"{path}: {status or 'no answer'}"


if __name__ == "__main__":
    try:
        said = problem(place(os.environ))
    except KeyError:
        said = "neither QANAT_NODE nor NODE_NAME is set"
    sys.exit(said or 0)
