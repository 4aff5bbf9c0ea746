# SPDX-License-Identifier: Apache-2.0
"""Reads ztunnel's access log (text form) back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from nodeagent.cli.evidence import LogLine

_FIELD = re.compile(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S*)')


def read(logs: Iterable[tuple[str, Path]]) -> Iterator[LogLine]:
    """Finished connections in the logs of (node, file); a line that is half written is left out."""
    for node, path in logs:
        for text in path.read_text(errors="replace").splitlines():
            parts = text.split("\t", 4)
            if len(parts) == 5 and parts[2:4] == ["access", "connection complete"] and " reason=" in parts[4]:
                yield _line(node, text, parts[4])


def _line(node: str, text: str, fields: str) -> LogLine:
    found = {key: json.loads(value) if value.startswith('"') else value for key, value in _FIELD.findall(fields)}
    return LogLine(
        node=node,
        direction=found.get("direction", ""),
        service=found.get("dst.service", ""),
        workload=found.get("dst.workload", ""),
        src_identity=found.get("src.identity", ""),
        dst_identity=found.get("dst.identity", ""),
        mtls=found.get("mtls") == "true",
        text=text,
    )
