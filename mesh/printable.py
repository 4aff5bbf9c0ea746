# SPDX-License-Identifier: Apache-2.0
"""Text that others wrote, made fit for a terminal and for one line of a log: no control characters (escape sequences
begin with one), no line ends, no marks that reorder or hide their neighbours."""

from __future__ import annotations


def printable(text: str, limit: int = 0) -> str:
    """Unfit characters as ``\\x1b`` or ``\\u202e``; longer than ``limit`` (0: none) it ends in ``..``."""
    if limit and len(text) > limit:
        text = text[: limit - 2] + ".."
    return text if text.isprintable() else "".join(map(_fit, text))


def _fit(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
