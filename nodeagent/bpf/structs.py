# SPDX-License-Identifier: Apache-2.0
"""ctypes twins of the structs of bpf/include/qanat.h."""

from __future__ import annotations

import ctypes

from nodeagent.bpf.kinds import POD_ADDRS, SERVICE_LOCAL


class QnAddr(ctypes.Structure):
    _fields_ = (
        ("ip", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("pad2", ctypes.c_uint32),
    )


class QnSocket(ctypes.Structure):
    _fields_ = (
        ("role", ctypes.c_uint32),
        ("path", ctypes.c_uint8),
        ("same_node", ctypes.c_uint8),
        ("draw", ctypes.c_uint8),
        ("marks", ctypes.c_uint8),
        ("rule", ctypes.c_uint32),
        ("epoch", ctypes.c_uint32),
        ("addr", QnAddr),
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("start_ns", ctypes.c_uint64),
        ("established_ns", ctypes.c_uint64),
        ("half_received", ctypes.c_uint64),
    )


class QnPod(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint32), ("slot", ctypes.c_uint32), ("addrs", QnAddr * POD_ADDRS))


class QnIp(ctypes.Structure):
    _fields_ = (("ip", ctypes.c_uint8 * 16), ("family", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3))


class QnSettings(ctypes.Structure):
    _fields_ = (
        ("node_netns", ctypes.c_uint64),
        ("heartbeat_ns", ctypes.c_uint64),
        ("stale_ns", ctypes.c_uint64),
        ("on_agent_down", ctypes.c_uint32),
        ("epoch", ctypes.c_uint32),
        ("paths", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class QnFlowKey(ctypes.Structure):
    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("src", ctypes.c_uint8 * 16),
        ("dst", ctypes.c_uint8 * 16),
        ("src_port", ctypes.c_uint16),
        ("dst_port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class QnFlow(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("addr", QnAddr),
        ("src", ctypes.c_uint64),
        ("epoch", ctypes.c_uint32),
        ("same_node", ctypes.c_uint8),
        ("is_met", ctypes.c_uint8),
        ("draw", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
    )


class QnService(ctypes.Structure):
    _fields_ = (("total", ctypes.c_uint32), ("n", ctypes.c_uint32), ("endpoints", QnAddr * SERVICE_LOCAL))


class QnVerdictKey(ctypes.Structure):
    _fields_ = (("src", ctypes.c_uint64), ("dst", QnAddr))


class QnVerdict(ctypes.Structure):
    _fields_ = (
        ("dst", ctypes.c_uint64),
        ("epoch", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("decision", ctypes.c_uint8),
        ("same_node", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 6),
    )


class QnListed(ctypes.Structure):
    _fields_ = (
        ("socket", QnSocket),
        ("local", ctypes.c_uint8 * 16),
        ("remote", ctypes.c_uint8 * 16),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("state", ctypes.c_uint8),
        ("is_v6", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("cookie", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("snd_nxt", ctypes.c_uint32),
        ("rcv_nxt", ctypes.c_uint32),
    )


class QnHalf(ctypes.Structure):
    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("is_server", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class QnJoin(ctypes.Structure):
    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("peer", ctypes.c_uint64),
        ("peer_at", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("messages", ctypes.c_uint64),
        ("mark_messages", ctypes.c_uint64 * 2),
        ("mark_bytes", ctypes.c_uint64),
        ("is_moving", ctypes.c_uint32),
        ("is_server", ctypes.c_uint32),
        ("settled", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", QnFlowKey),
    )


class QnArrived(ctypes.Structure):
    _fields_ = (
        ("next", ctypes.c_uint32),
        ("is_torn", ctypes.c_uint32),
    )


class QnEvent(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("time_ns", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("dialled", QnAddr),
        ("target", QnAddr),
    )
