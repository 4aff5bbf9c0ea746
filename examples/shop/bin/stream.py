# SPDX-License-Identifier: Apache-2.0
"""A download server of nothing but the standard library.

GET /download?bytes=N&rate=R&note=TEXT sends N bytes: numbered 64-byte lines that carry the note, at R bytes per second
(0: as fast as the network takes them). Both ends can compute the same checksum.
"""

from __future__ import annotations

import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

LINE = 64
STEP_S = 0.05


def line(number: int, note: str) -> bytes:
    return f"{number:012d} {note}".ljust(LINE - 1)[: LINE - 1].encode() + b"\n"


def content(start: int, size: int, note: str) -> bytes:
    """Bytes start to start+size of the endless text for ``note``."""
    first, last = start // LINE, (start + size) // LINE
    text = b"".join(line(number, note) for number in range(first, last + 1))
    return text[start - first * LINE :][:size]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path == "/healthz":
            self._begin(3)
            self.wfile.write(b"ok\n")
        elif url.path == "/download":
            self._download(int(query.get("bytes", 1 << 20)), int(query.get("rate", 0)), query.get("note", ""))
        else:
            self.send_error(404)

    def _begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _download(self, size: int, rate: int, note: str) -> None:
        self._begin(size)
        step = max(LINE, int(rate * STEP_S)) if rate else 1 << 18
        sent, began = 0, time.monotonic()
        while sent < size:
            piece = content(sent, min(step, size - sent), note)
            self.wfile.write(piece)
            sent += len(piece)
            if rate:
                time.sleep(max(0.0, began + sent / rate - time.monotonic()))

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the mesh logs connections."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)  # no reverse look-up of our own address, as HTTPServer would do
        self.server_name, self.server_port = "media", self.server_address[1]


if __name__ == "__main__":
    Server(("::", int(sys.argv[1])), Handler).serve_forever()
