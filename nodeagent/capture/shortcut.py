# SPDX-License-Identifier: Apache-2.0
"""The programs of bpf/shortcut.bpf.c and bpf/join.bpf.c: loaded, attached to the cgroup and to their socket map."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.bpf import descriptors
from nodeagent.bpf.descriptors import Link, Map
from nodeagent.bpf.loader import Object


@contextmanager
def loaded(pin_root: Path, settings: dict[str, bytes] | None = None) -> Iterator[int]:
    """The descriptor of qn_join, to be attached to the cgroup; whoever it joins is judged. settings: QN_SETTINGs of
    shortcut.bpf.c. Raises BpfError."""
    with Object("shortcut", pin_root, settings) as messages, Object("join", pin_root) as join:
        judge_messages(messages)
        yield join.prog_fd("qn_join")


def attach(pin_root: Path, cgroup: Path, settings: dict[str, bytes] | None = None) -> Link:
    """The shortcut for flows that `sockets` (pinned below `pin_root`) marks for it. The caller keeps or pins the link:
    without it no new flow is joined. Raises BpfError, OSError."""
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with loaded(pin_root, settings) as join_fd:
            return Link.attach(join_fd, cgroup_fd, descriptors.CGROUP_SOCK_OPS)
    finally:
        os.close(cgroup_fd)


def judge_messages(messages: Object) -> None:
    """Sockets that enter the map from now on are judged by these programs; those inside keep the ones they have."""
    with Map(os.dup(messages.map_fd("joinable"))) as joinable:
        joinable.attach(messages.prog_fd("qn_shortcut"), descriptors.SK_MSG_VERDICT)
        joinable.attach(messages.prog_fd("qn_inflow"), descriptors.SK_SKB_VERDICT)
