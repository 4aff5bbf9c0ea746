# SPDX-License-Identifier: Apache-2.0
"""``hold.py HOST PORT``: one connection to an echo, kept open. Each line of standard input goes through it and is
printed when it comes back."""

import socket
import sys

with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    print("open", flush=True)
    for line in sys.stdin:
        connection.sendall(line.encode())
        answer = b""
        while not answer.endswith(b"\n"):
            data = connection.recv(65536)
            if not data:
                sys.exit("closed by the other side")
            answer += data
        print(answer.decode(), end="", flush=True)
