# SPDX-License-Identifier: Apache-2.0
"""Files that other programs watch: replaced whole, and only when they differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def replace(path: Path, text: str, mode: int = 0o644) -> bool:
    """False when it already says so."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        pass
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)
    return True


def documents(objects: Iterable[Mapping[str, object]]) -> str:
    """A YAML stream; each document is JSON, which is YAML."""
    return "".join(f"---\n{json.dumps(item)}\n" for item in objects)
