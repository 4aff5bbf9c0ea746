# SPDX-License-Identifier: Apache-2.0
"""Runs in test pods: HTTP on 8080 (who am I, whom do I see), an echo on 7000."""

import http.server
import json
import os
import socketserver
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


threading.Thread(target=Server(("", 7000), Echo).serve_forever, daemon=True).start()
Server(("", 8080), Answer).serve_forever()
