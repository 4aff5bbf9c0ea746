# SPDX-License-Identifier: Apache-2.0
"""`python3 -m nodeagent.relay --node NAME`: in a pod of the mesh, joins many connections of a caller to this node's
admin sockets (`--authority`: to the control plane's), over standard input and output. Started by `qanat` through the
API's exec.

Both ways frames go: kind (1 byte), connection (4 bytes), length (4 bytes), content. READY comes first from here, so
that a caller knows that it speaks to a relay. The caller numbers connections. One that ends, on either side, ends
whole: CLOSE with the reason, empty when all is well. The caller sends PING at least every PING_S; when nothing has
come for SILENCE_S, or standard input ends, the relay ends and with it every connection.

Standard library only, threads, no event loop: it starts in the time of an interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

HEADER = struct.Struct(">BII")
MAX_CONTENT = 16_384
MAX_CONNECTIONS = 64
GREETING = b"qanat relay 1"
PING_S = 15.0
SILENCE_S = 60.0
CONNECT_S = 5.0
SOCKETS = {"nodeagent": "agent.sock", "ztunnel": "ztunnel.sock", "controlplane": "controlplane.sock"}
"""What a caller may reach, by the program's name."""


class Kind(IntEnum):
    """OPEN's content is a program's name, CLOSE's a reason; PING and READY belong to connection 0."""

    READY = 0
    OPEN = 1
    DATA = 2
    CLOSE = 3
    PING = 4


class BadFrame(ValueError):
    """What came is not of this protocol."""


def frame(kind: Kind, connection: int = 0, content: bytes = b"") -> bytes:
    return HEADER.pack(kind, connection, len(content)) + content


class Frames:
    """Bytes in any cut to frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[Kind, int, bytes]]:
        """Raises BadFrame."""
        self._rest += data
        found = []
        while len(self._rest) >= HEADER.size:
            number, connection, length = HEADER.unpack_from(self._rest)
            if number > max(Kind) or length > MAX_CONTENT:
                raise BadFrame(f"not a frame: {bytes(self._rest[:24])!r}")
            if len(self._rest) < HEADER.size + length:
                break
            found.append((Kind(number), connection, bytes(self._rest[HEADER.size : HEADER.size + length])))
            del self._rest[: HEADER.size + length]
        return found


class Relay:
    """`write` takes whole frames, from any thread."""

    def __init__(self, directory: Path, write: Callable[[bytes], None]) -> None:
        self._directory = directory
        self._write = write
        self._sockets: dict[int, socket.socket] = {}
        self._lock = threading.Lock()

    def take(self, kind: Kind, connection: int, content: bytes) -> None:
        match kind:
            case Kind.OPEN:
                self._open(connection, content.decode("utf-8", "replace"))
            case Kind.DATA:
                self._send(connection, content)
            case Kind.CLOSE:
                self._end(connection)
            case _:
                pass

    def close(self) -> None:
        for connection in list(self._sockets):
            self._end(connection)

    def _open(self, connection: int, program: str) -> None:
        name = SOCKETS.get(program)
        if name is None or connection in self._sockets or len(self._sockets) >= MAX_CONNECTIONS:
            self._write(frame(Kind.CLOSE, connection, b"the relay opens no such connection"))
            return
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            opened.settimeout(CONNECT_S)
            opened.connect(str(self._directory / name))
            opened.settimeout(None)
        except OSError as error:
            opened.close()
            self._write(frame(Kind.CLOSE, connection, why_closed(error).encode()))
            return
        with self._lock:
            self._sockets[connection] = opened
        threading.Thread(target=self._read, args=(connection, opened), daemon=True).start()

    def _send(self, connection: int, content: bytes) -> None:
        with self._lock:
            opened = self._sockets.get(connection)
        if opened is not None:
            try:
                opened.sendall(content)
            except OSError:
                self._end(connection)

    def _read(self, connection: int, opened: socket.socket) -> None:
        reason = b""
        try:
            while data := opened.recv(MAX_CONTENT):
                self._write(frame(Kind.DATA, connection, data))
        except OSError as error:
            reason = (error.strerror or "the connection broke").encode()
        with self._lock:
            ours = self._sockets.pop(connection, None) is opened
        opened.close()
        if ours:
            self._write(frame(Kind.CLOSE, connection, reason))

    def _end(self, connection: int) -> None:
        """The caller's wish, so nothing is said."""
        with self._lock:
            opened = self._sockets.pop(connection, None)
        if opened is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)  # wakes its reader, which closes it


def why_closed(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "not running (no socket)"
        case ConnectionRefusedError():
            return "not running (nobody listens on its socket)"
        case TimeoutError():
            return f"does not accept connections ({CONNECT_S:g} s)"
        case _:
            return error.strerror or str(error)


def run(directory: Path, incoming: int, outgoing: int, silence_s: float = SILENCE_S) -> None:
    """Until `incoming` ends, says something else than frames, or nothing for too long."""
    lock = threading.Lock()

    def write(data: bytes) -> None:
        view = memoryview(data)
        with lock:
            while view:
                view = view[os.write(outgoing, view) :]

    relay, frames = Relay(directory, write), Frames()
    try:
        write(frame(Kind.READY, content=GREETING))
        with selectors.DefaultSelector() as selector:
            selector.register(incoming, selectors.EVENT_READ)
            while selector.select(silence_s) and (data := os.read(incoming, 65_536)):
                for kind, connection, content in frames.feed(data):
                    relay.take(kind, connection, content)
    except (BadFrame, BrokenPipeError):
        pass  # the caller is gone, or is no caller
    finally:
        relay.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m nodeagent.relay", description="For `qanat`, through exec.")
    parser.add_argument("--run-dir", default=os.environ.get("QANAT_RUN_DIR", "/run/qanat"))
    parser.add_argument("--mesh", default=os.environ.get("QANAT_MESH", "default"))
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--node")
    whose.add_argument("--authority", action="store_true")
    given = parser.parse_args()
    directory = Path(given.run_dir, given.mesh)
    if not given.authority:
        if "/" in given.node or given.node in ("", ".", ".."):
            parser.error(f"--node {given.node}: not a node's name")
        directory = directory / "nodes" / given.node
    run(directory, sys.stdin.fileno(), sys.stdout.fileno())
    os._exit(0)  # a thread may stand in a write that nobody reads


if __name__ == "__main__":
    main()
