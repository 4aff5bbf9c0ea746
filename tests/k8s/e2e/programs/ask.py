# SPDX-License-Identifier: Apache-2.0
"""``ask.py HOST PORT MARKER [SOURCE]``: one request that carries MARKER, from the address SOURCE where one is given;
prints {"family": of the connection, "port": our own, "answer" or "error"}."""

import json
import socket
import sys

host, port, marker = sys.argv[1], int(sys.argv[2]), sys.argv[3]
source = (sys.argv[4], 0) if len(sys.argv) > 4 else None
found: dict[str, object] = {}
try:
    with socket.create_connection((host, port), timeout=10, source_address=source) as connection:
        found["family"] = 6 if connection.family == socket.AF_INET6 else 4
        found["port"] = connection.getsockname()[1]
        connection.sendall(f"GET /{marker} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    found["answer"] = json.loads(answer.partition(b"\r\n\r\n")[2])
except (OSError, ValueError) as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
