# SPDX-License-Identifier: Apache-2.0
"""``leaving.py SECONDS``: runs in test pods as server.py does; told to end (SIGTERM) it serves on for so long, as
programs do that wait for load balancers to notice, and ends then."""

import http.server
import json
import os
import signal
import socketserver
import sys
import threading


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"pod": os.environ["HOSTNAME"], "client": self.client_address[0]}).encode()
        self.send_response(200)
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
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


for port, handler in ((7000, Echo), (8080, Answer)):
    threading.Thread(target=Server(("", port), handler).serve_forever, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.sigwait({signal.SIGTERM})
signal.sigtimedwait(set(), float(sys.argv[1]))
