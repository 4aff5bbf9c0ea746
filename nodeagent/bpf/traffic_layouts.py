# SPDX-License-Identifier: Apache-2.0
"""bpf/include/traffic.h and trace.h in Python: ctypes twins, checked with those of qanat.h."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Final

from nodeagent.bpf.layouts import QnAddr

TRAFFIC_MAX: Final = 16384


class End(IntEnum):
    """How a tracked connection ended."""

    CLOSED = 1
    RESET = 2
    FAILED = 3


class TraceKind(IntEnum):
    CONNECT = 1
    ESTABLISHED = 2
    ACCEPT = 3
    RETRANSMIT = 4
    RESET = 5
    FAILED = 6
    CLOSE = 7


class QnTrace(ctypes.Structure):
    _fields_ = (
        ("time_ns", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("socket", ctypes.c_uint64),
        ("bytes_sent", ctypes.c_uint64),
        ("bytes_received", ctypes.c_uint64),
        ("local", QnAddr),
        ("remote", QnAddr),
        ("dialled", QnAddr),
        ("rule", ctypes.c_uint32),
        ("srtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
        ("kind", ctypes.c_uint8),
        ("path", ctypes.c_uint8),
        ("role", ctypes.c_uint8),
        ("refused", ctypes.c_uint8),
    )


class QnTrack(ctypes.Structure):
    _fields_ = (
        ("start_ns", ctypes.c_uint64),
        ("established_ns", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("rule", ctypes.c_uint32),
        ("path", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("local", QnAddr),
        ("remote", QnAddr),
        ("dialled", QnAddr),
    )


class QnClosing(ctypes.Structure):
    _fields_ = (
        ("track", QnTrack),
        ("end_ns", ctypes.c_uint64),
        ("socket", ctypes.c_uint64),
        ("bytes_sent", ctypes.c_uint64),
        ("bytes_received", ctypes.c_uint64),
        ("srtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
        ("end", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class QnLive(ctypes.Structure):
    _fields_ = (
        ("track", QnTrack),
        ("socket", ctypes.c_uint64),
        ("bytes_sent", ctypes.c_uint64),
        ("bytes_received", ctypes.c_uint64),
        ("srtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
    )


class QnTrafficKey(ctypes.Structure):
    _fields_ = (
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("remote", QnAddr),
        ("dialled", QnAddr),
        ("path", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class QnTraffic(ctypes.Structure):
    _fields_ = (
        ("opened", ctypes.c_uint64),
        ("closed", ctypes.c_uint64),
        ("failed", ctypes.c_uint64),
        ("resets", ctypes.c_uint64),
        ("bytes_sent", ctypes.c_uint64),
        ("bytes_received", ctypes.c_uint64),
        ("retransmits", ctypes.c_uint64),
        ("srtt_us", ctypes.c_uint64),
    )


STRUCTS: Final[dict[str, type[ctypes.Structure]]] = {
    "qn_trace": QnTrace,
    "qn_track": QnTrack,
    "qn_closing": QnClosing,
    "qn_live": QnLive,
    "qn_traffic_key": QnTrafficKey,
    "qn_traffic": QnTraffic,
}
CONSTANTS: Final[dict[str, int]] = {"QN_TRAFFIC_MAX": TRAFFIC_MAX}
