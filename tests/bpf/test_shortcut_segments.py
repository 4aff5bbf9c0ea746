# SPDX-License-Identifier: Apache-2.0
"""The shortcut and what TCP repeats: a segment may begin with bytes that have arrived, as when a sender repeats with
another segmentation. TCP's readers step over them; those of a socket map get them twice, unless qn_inflow
cuts them off."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from nodeagent.bpf.layouts import Counter
from nodeagent.capture import netns
from nodeagent.capture.joined import Joined, Pair
from nodeagent.capture.trial import unread
from tests.bpf.segments import inject
from tests.bpf.world import eventually


@pytest.fixture(scope="module")
def rig() -> Iterator[Joined]:
    with Joined() as made:
        yield made


@pytest.fixture
def pair(rig: Joined) -> Iterator[Pair]:
    """Joined, and for now on TCP."""
    rig.switch(on=True)
    with rig.pair() as made:
        rig.switch(on=False)
        yield made


@pytest.fixture
def raw(rig: Joined) -> Iterator[socket.socket]:
    with netns.inside(rig.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as made:
        yield made


def arrived(pair: Pair, length: int) -> bytes:
    """What waits at the server once it is at least `length`."""
    eventually(lambda: unread(pair.server) >= length, f"{length} bytes")
    return pair.server.recv(unread(pair.server) + 1)


@pytest.mark.parametrize("back", [1, 5, 4095, 4096, 20_000])
def test_bytes_that_arrive_again_in_front_of_new_ones_are_read_once(
    rig: Joined, pair: Pair, raw: socket.socket, back: int
) -> None:
    before = rig.counter(Counter.SHORTCUT_OVERLAP)
    data = random.Random(back).randbytes(back + 10_000)
    first, rest = data[: back + 2000], data[back + 2000 :]
    pair.client.sendall(first)

    inject(raw, pair.client, data[2000 : back + 2005], back=back)

    assert arrived(pair, len(first) + 5) == data[: len(first) + 5]
    pair.client.sendall(rest)  # again with five bytes that have arrived
    assert arrived(pair, len(rest) - 5) == rest[5:]
    assert rig.counter(Counter.SHORTCUT_OVERLAP) == before + 2
    assert rig.counter(Counter.SHORTCUT_TORN) == 0


def test_bytes_are_moved_again_after_an_overlap(rig: Joined, pair: Pair, raw: socket.socket) -> None:
    pair.client.sendall(b"0123456789")
    inject(raw, pair.client, b"56789abcde", back=5)
    assert arrived(pair, 15) == b"0123456789abcde"
    pair.client.sendall(b"abcde")

    rig.switch(on=True)
    pair.client.sendall(b"moved")

    assert arrived(pair, 5) == b"moved"
    assert rig.moved(pair.client) == 5


def test_overlap_before_an_end_leaves_the_end(rig: Joined, pair: Pair, raw: socket.socket) -> None:
    pair.client.sendall(b"0123456789")

    inject(raw, pair.client, b"56789", back=5, fin=True)

    assert arrived(pair, 10) == b"0123456789"
    assert pair.server.recv(10) == b""


def test_without_the_cut_this_kernel_reads_them_twice(rig: Joined, pair: Pair, raw: socket.socket) -> None:
    """Should this fail, the kernel has learned it and qn_inflow may go back to passing everything."""
    for key in rig.maps["arrived"].keys():  # noqa: SIM118  (a map of the kernel, no dict)
        rig.maps["arrived"].delete(key)
    pair.client.sendall(b"0123456789")

    inject(raw, pair.client, b"56789abcde", back=5)

    assert arrived(pair, 15) == b"012345678956789abcde"
