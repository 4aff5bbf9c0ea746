# SPDX-License-Identifier: Apache-2.0
"""``load.py HOST PORT``: a request on a new connection every 20 ms until standard input ends. Prints "running" after
the first, at the end {"sent": n, "failed": [...], "slowest_ms": n}."""

import json
import socket
import sys
import threading
import time

host, port = sys.argv[1], int(sys.argv[2])
over = threading.Event()
lock = threading.Lock()
failed: list[str] = []
slowest = 0.0
sent = 0


def request() -> None:
    global slowest
    begun = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
        if not answer.startswith(b"HTTP/1.0 200"):
            raise ValueError(f"answer {answer[:60]!r}")
    except (OSError, ValueError) as error:
        with lock:
            failed.append(f"{type(error).__name__}: {error}")
    with lock:
        slowest = max(slowest, time.monotonic() - begun)


def read() -> None:
    sys.stdin.read()
    over.set()


threading.Thread(target=read, daemon=True).start()
threads: list[threading.Thread] = []
due = time.monotonic()
while not over.is_set():
    thread = threading.Thread(target=request)
    thread.start()
    threads = [one for one in threads if one.is_alive()]
    threads.append(thread)
    if not sent:
        thread.join()
        print("running", flush=True)
    sent += 1
    due += 0.02
    time.sleep(max(0.0, due - time.monotonic()))
for thread in threads:
    thread.join()
print(json.dumps({"sent": sent, "failed": failed[:20], "slowest_ms": round(slowest * 1000)}), flush=True)
