# SPDX-License-Identifier: Apache-2.0
"""Text that others wrote, made fit for a terminal and for one line of a log."""

from __future__ import annotations

import re

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters (escape sequences begin with one), line ends, and marks that reorder or hide their neighbours."""


def printable(text: str, limit: int = 0) -> str:
    """Unfit characters as ``\\x1b``; longer than ``limit`` (0: none) it ends in ``..``."""
    if limit and len(text) > limit:
        text = text[: limit - 2] + ".."
    return text if text.isascii() and text.isprintable() else _UNFIT.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
