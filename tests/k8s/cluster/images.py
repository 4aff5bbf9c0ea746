# SPDX-License-Identifier: Apache-2.0
"""Images for the nodes: ours and the one that holds a pod's namespaces. Test pods run on ours: it has Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from daemonset.images import oci
from tests.k8s.cluster import programs
from tests.k8s.cluster.names import COREDNS
from tests.k8s.cluster.node_files import PAUSE

ROOT = Path(__file__).resolve().parents[3]
BUILT = ROOT / "build" / "images"
QANAT = "localhost/qanat:0.1.0"


def build() -> tuple[Path, ...]:
    ours = BUILT / "qanat.tar"
    pause = build_pause()
    subprocess.run(
        [sys.executable, str(ROOT / "daemonset/images/local.py"), f"--name={QANAT}", f"--to={ours}"], check=True
    )
    return pause, build_names(), ours


def build_names() -> Path:
    """CoreDNS, as in programs.find()."""
    found = programs.find().coredns
    names = BUILT / f"{found.parent.name}.tar"
    if not names.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            shutil.copy(found, directory)
            oci.write(oci.Image(COREDNS, entrypoint=("/coredns",)), Path(directory), names)
    return names


def build_pause() -> Path:
    BUILT.mkdir(parents=True, exist_ok=True)
    pause = BUILT / "pause.tar"
    if not pause.exists():
        with tempfile.TemporaryDirectory() as directory:
            source = Path(__file__).with_name("pause.c")
            subprocess.run(["gcc", "-static", "-O2", "-o", f"{directory}/pause", str(source)], check=True)
            oci.write(oci.Image(PAUSE, entrypoint=("/pause",)), Path(directory), pause)
    return pause
