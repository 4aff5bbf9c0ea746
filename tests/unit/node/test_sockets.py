# SPDX-License-Identifier: Apache-2.0
"""Reading which ports a pod serves."""

from __future__ import annotations

import socket
from pathlib import Path

from nodeagent.pods.sockets import Listening, listening, parse

LINES = """\
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0000000000000000
   2: 0100007F:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0000000000000000
   3: 0201010A:1F90 0301010A:C350 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0000000000000000
   4: 000080FE00000000FF565002BD69B1FE:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 0
   garbage
"""


def test_listening_sockets_are_read_and_ours_and_connections_left_out() -> None:
    assert list(parse(LINES.splitlines())) == [
        Listening("0.0.0.0", 8080),
        Listening("127.0.0.1", 80),
        Listening("fe80::250:56ff:feb1:69bd", 8081),
    ]


def test_own_network_is_read_as_it_is() -> None:
    with socket.socket() as served:
        served.bind(("127.0.0.1", 0))
        served.listen()

        assert Listening("127.0.0.1", served.getsockname()[1]) in listening(Path("/proc/self/ns/net"))
