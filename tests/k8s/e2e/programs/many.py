# SPDX-License-Identifier: Apache-2.0
"""``many.py HOST PORT COUNT [TIMEOUT]``: requests one after another, each on a connection of its own; prints a list of
what the server said, or of errors as text."""

import json
import socket
import sys

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
timeout = float(sys.argv[4]) if len(sys.argv) > 4 else 10.0
found: list[object] = []
for _ in range(count):
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
        found.append(json.loads(answer.partition(b"\r\n\r\n")[2]))
    except (OSError, ValueError) as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
