# SPDX-License-Identifier: Apache-2.0
"""Capture of pods' connections: enrolment of a network namespace, its listeners, what stays pinned."""

from nodeagent.bpf.layouts import Address, AgentDown, Counter, SockAddr
from nodeagent.capture.capture import Capture, CapturedPod, CaptureSettings, PodCapture
from nodeagent.capture.errors import CaptureError, NotSupported
from nodeagent.capture.listeners import Listeners, guard, open_listeners, open_syn_sockets
from nodeagent.capture.netns import netns_cookie
from nodeagent.capture.path_maps import MapFull, PathEvent, PathMaps
from nodeagent.capture.path_socket import PathSocket
from nodeagent.capture.pins import instances, purge, stale_schemas

__all__ = [
    "Address",
    "AgentDown",
    "Capture",
    "CaptureError",
    "CaptureSettings",
    "CapturedPod",
    "Counter",
    "Listeners",
    "MapFull",
    "NotSupported",
    "PathEvent",
    "PathMaps",
    "PathSocket",
    "PodCapture",
    "SockAddr",
    "guard",
    "instances",
    "netns_cookie",
    "open_listeners",
    "open_syn_sockets",
    "purge",
    "stale_schemas",
]
