# SPDX-License-Identifier: Apache-2.0
"""``lasting.py HOST PORT``: one connection to an echo, used ten times a second until it ends; prints "open", and at its
end {"answers": n, "lasted_s": n, "end": why}. Any line of standard input asks for the answers so far."""

import json
import socket
import sys
import threading
import time

answers = 0


def report() -> None:
    for _ in sys.stdin:
        print(json.dumps({"answers": answers}), flush=True)


with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    begun = time.monotonic()
    print("open", flush=True)
    threading.Thread(target=report, daemon=True).start()
    end = "closed"
    try:
        while True:
            connection.sendall(b"still there?\n")
            if not connection.recv(100):
                break
            answers += 1
            time.sleep(0.1)
    except OSError as error:
        end = type(error).__name__
print(json.dumps({"answers": answers, "lasted_s": round(time.monotonic() - begun, 1), "end": end}), flush=True)
