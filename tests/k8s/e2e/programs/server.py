# SPDX-License-Identifier: Apache-2.0
"""Runs in test pods: HTTP on 8080 (who am I, whom do I see), an echo on 7000, gRPC's health service on 9090 where it is
asked for (argument "grpc"). While /tmp/ill is there, /ready answers 503, gRPC says NOT_SERVING and the echo is closed
to new connections. "leave SECONDS": told to end (SIGTERM) it serves on for so long, as programs do that wait for load
balancers to notice, and ends then. "both": in both families, by one listener; otherwise IPv4 alone."""

import http.server
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path

ILL = Path("/tmp/ill")


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(
            {"pod": os.environ["HOSTNAME"], "client": self.client_address[0].removeprefix("::ffff:")}
        ).encode()
        self.send_response(503 if self.path == "/ready" and ILL.exists() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6 if "both" in sys.argv else socket.AF_INET
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def echo() -> None:
    while True:
        with Server(("", 7000), Echo) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            while not ILL.exists():
                time.sleep(0.1)
            server.shutdown()
        while ILL.exists():
            time.sleep(0.1)


def health() -> None:
    """grpc.health.v1.Health/Check by hand: HealthCheckResponse{status: SERVING = 1, NOT_SERVING = 2}."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def check(request: bytes, context: object) -> bytes:
        return b"\x08\x02" if ILL.exists() else b"\x08\x01"

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
    server.add_insecure_port("0.0.0.0:9090")
    server.start()
    server.wait_for_termination()


if "leave" in sys.argv:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of all threads that follow
threading.Thread(target=echo, daemon=True).start()
if "grpc" in sys.argv:
    threading.Thread(target=health, daemon=True).start()
answers = Server(("", 8080), Answer)
if "leave" not in sys.argv:
    answers.serve_forever()
threading.Thread(target=answers.serve_forever, daemon=True).start()
signal.sigwait({signal.SIGTERM})
signal.sigtimedwait(set(), float(sys.argv[sys.argv.index("leave") + 1]))
