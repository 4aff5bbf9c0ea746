# SPDX-License-Identifier: Apache-2.0
"""What this kernel has."""

from __future__ import annotations

import sys

from nodeagent.bpf.libbpf import lib

# enum bpf_prog_type and bpf_func_id, linux/bpf.h
PROG_CGROUP_SOCK_ADDR = 18
PROG_SOCK_OPS = 13
PROG_SK_LOOKUP = 30
HELPER_SK_STORAGE_GET = 107
HELPER_GET_NETNS_COOKIE = 122
HELPER_SK_ASSIGN = 124
HELPER_SET_RETVAL = 187
HELPER_SKC_TO_MPTCP_SOCK = 196


def has_program_type(prog_type: int) -> bool:
    return int(lib.qnb_has_prog_type(prog_type)) == 1


def has_map_type(map_type: int) -> bool:
    return int(lib.qnb_has_map_type(map_type)) == 1


def has_helper(prog_type: int, helper: int) -> bool:
    return int(lib.qnb_has_helper(prog_type, helper)) == 1


def settings_of(name: str) -> dict[str, bytes]:
    """Read-only values of an object that tell it what this kernel has."""
    if name != "capture":
        return {}
    helpers = {"cfg_set_retval": HELPER_SET_RETVAL, "cfg_mptcp": HELPER_SKC_TO_MPTCP_SOCK}
    return {
        variable: int(has_helper(PROG_CGROUP_SOCK_ADDR, helper)).to_bytes(4, sys.byteorder)
        for variable, helper in helpers.items()
    }
