# SPDX-License-Identifier: Apache-2.0
"""``beacon.py HOST PORT MARKER``: from the first moment on one request after the other, each carries MARKER; prints the
answers' client addresses."""

import json
import socket
import sys
import time

host, port, marker = sys.argv[1], int(sys.argv[2]), sys.argv[3]
while True:
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(f"GET /{marker} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while data := connection.recv(65536):
                answer += data
        print(json.loads(answer.partition(b"\r\n\r\n")[2])["client"], flush=True)
    except (OSError, ValueError) as error:
        print(type(error).__name__, flush=True)
    time.sleep(0.05)
