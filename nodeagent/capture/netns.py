# SPDX-License-Identifier: Apache-2.0
"""Doing a thing inside another network namespace, and the kernel's name for one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

T = TypeVar("T")


def inside(netns_fd: int, act: Callable[[], T]) -> T:
    """Run `act` in a thread of its own inside the namespace; its result or exception is ours. Sockets made there stay
    there. Threads have their own network namespace, so nobody else notices."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(netns_fd, CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, f"setns: {os.strerror(code)}")
            results.append(act())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="in-netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def make_private() -> int:
    """A new network namespace with nothing but a loopback that is up; it lives as long as the descriptor, which the
    caller closes, or a socket in it. Raises OSError."""

    def make() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"unshare: {os.strerror(code)}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inside(own, make)
    finally:
        os.close(own)


def own_cookie() -> int:
    """Cookie of the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def netns_cookie(netns_fd: int) -> int:
    """The kernel's number of a network namespace: never reused while the machine runs. Raises OSError."""
    return inside(netns_fd, own_cookie)
