# SPDX-License-Identifier: Apache-2.0
"""The requests of the demo: ordinary clients run inside pods of examples/shop, and what is right about their output."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nodeagent.cli.evidence import Outcome
from nodeagent.cli.playground_client import Playground

TIMEOUT_S = 15.0
STREAM_BYTES = 4_000_000
_SHOWN = "\\nseen_server=%{remote_ip} http=%{http_version} status=%{http_code}\\n"
_CURL = ["curl", "-sS", "--max-time", str(TIMEOUT_S), "-w", _SHOWN]


@dataclass(frozen=True, slots=True)
class Request:
    """``name`` is the service's too. ``command`` and ``check`` take the secret; ``check`` says what is wrong."""

    name: str
    namespace: str
    client: tuple[str, str]
    command: Callable[[str], list[str]]
    check: Callable[[str, str], str]


def new_secret() -> str:
    """Long enough never to occur by chance, short enough to fit a line of the download."""
    return f"qanat-secret-{secrets.token_hex(12)}"


def _curl(host: str, *extra: str) -> Callable[[str], list[str]]:
    return lambda secret: [*_CURL, *extra, "-H", f"x-note: {secret}", f"http://{host}/"]


def _echoed(http: str) -> Callable[[str, str], str]:
    def check(output: str, secret: str) -> str:
        if f"http={http} status=200" not in output:
            return f"not HTTP {http} with status 200: {output.strip()!r}"
        return "" if f"note: {secret}" in output else f"the answer lacks the note: {output.strip()!r}"

    return check


def _redis(secret: str) -> list[str]:
    return ["sh", "-c", 'redis-cli -h cart set note "$1" && redis-cli -h cart get note', "sh", secret]


def _stored(output: str, secret: str) -> str:
    return "" if output.split() == ["OK", secret] else f"not what was stored: {output.strip()!r}"


class Scenario:
    """Built on a running copy of examples/shop."""

    def __init__(self, playground: Playground, example: Path) -> None:
        self._playground = playground
        self._stream = _load(example / "bin" / "stream.py")
        shopper, visitor = ("shop", "shopper"), ("legacy", "visitor")
        self.requests = (
            Request("web", "shop", shopper, _curl("web"), _echoed("1.1")),
            Request("catalog", "shop", shopper, _curl("catalog", "--http2-prior-knowledge"), _echoed("2")),
            Request("cart", "shop", shopper, _redis, _stored),
            Request("media", "shop", shopper, lambda s: self.download_command(s, STREAM_BYTES, 0), self._streamed),
        )
        self.outside = (
            Request("visitor to archive", "legacy", visitor, _curl("archive"), _echoed("1.1")),
            Request("visitor to shop/web", "shop", visitor, _curl("web.shop"), _echoed("1.1")),
            Request("shopper to legacy/archive", "legacy", shopper, _curl("archive.legacy"), _echoed("1.1")),
        )

    def run(self, request: Request, phase: str) -> Outcome:
        """Never raises for a request that fails: that is an outcome."""
        secret, began = new_secret(), time.monotonic()
        pod = self._playground.pods()[request.client]
        child = self._playground.popen(pod, request.command(secret), subprocess.PIPE)
        began = time.monotonic()
        try:
            out, err = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            return Outcome(request.name, phase, secret, f"no end in {TIMEOUT_S:g} s", time.monotonic() - began)
        took = time.monotonic() - began
        output = out.decode(errors="replace")
        problem = err.decode(errors="replace").strip() or f"exit code {child.returncode}" if child.returncode else ""
        client = re.search(r"(?:you are|to) ([0-9a-fA-F.:]+),", output)
        server = re.search(r"seen_server=(\S+)", output)
        return Outcome(
            request=request.name,
            phase=phase,
            secret=secret,
            problem=problem or request.check(output, secret),
            duration_s=took,
            seen_client=client[1] if client else "",
            seen_server=server[1] if server and request.name in ("web", "catalog") else "",
        )

    def download_command(self, secret: str, size: int, rate: int) -> list[str]:
        """A download through sha256sum; curl's own failure counts."""
        url = f"http://media/download?bytes={size}&rate={rate}&note={secret}"
        script = 'set -o pipefail; curl -sS --max-time 60 "$1" | sha256sum'
        return ["bash", "-c", script, "bash", url]

    def expected_sha256(self, secret: str, size: int) -> str:
        content: bytes = self._stream.content(0, size, secret)
        return hashlib.sha256(content).hexdigest()

    def _streamed(self, output: str, secret: str) -> str:
        return self.compare(output, secret, STREAM_BYTES)

    def compare(self, output: str, secret: str, size: int) -> str:
        return "" if output.split()[:1] == [self.expected_sha256(secret, size)] else f"sha256 differs over {size} bytes"


def _load(path: Path) -> ModuleType:
    """The example's own server, for its description of what it sends."""
    spec = importlib.util.spec_from_file_location("shop_stream", path)
    assert spec is not None  # a .py file has both
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
