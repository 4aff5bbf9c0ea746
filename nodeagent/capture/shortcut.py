# SPDX-License-Identifier: Apache-2.0
"""The programs of bpf/shortcut.bpf.c: loaded, attached to the cgroup and to their socket map."""

from __future__ import annotations

import os
from pathlib import Path

from nodeagent.bpf import loader
from nodeagent.bpf.loader import Link, Map, Object

OBJECT = "shortcut"


def attach(pin_root: Path, cgroup: Path, settings: dict[str, bytes] | None = None) -> Link:
    """The shortcut for flows that `sockets` (pinned below `pin_root`) marks for it. The caller keeps or pins the link:
    without it no new flow is joined. settings: QN_SETTINGs of the source. Raises BpfError, OSError."""
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Object(OBJECT, pin_root, settings) as loaded:
            judge_messages(loaded)
            return Link.attach(loaded.prog_fd("qn_join"), cgroup_fd, loader.CGROUP_SOCK_OPS)
    finally:
        os.close(cgroup_fd)


def judge_messages(loaded: Object) -> None:
    """Sockets that enter the map from now on are judged by these programs; those inside keep the ones they have."""
    with Map(os.dup(loaded.map_fd("joinable"))) as joinable:
        joinable.attach(loaded.prog_fd("qn_shortcut"), loader.SK_MSG_VERDICT)
        joinable.attach(loaded.prog_fd("qn_inflow"), loader.SK_SKB_VERDICT)
