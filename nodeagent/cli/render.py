# SPDX-License-Identifier: Apache-2.0
"""Rows to a terminal or to a program: aligned columns, or JSON and YAML of the same rows."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.printable import printable

Row = TypeVar("Row")
UNLIMITED = 10_000
"""Characters: a pipe has no width, and a line broken in the middle is no use to grep."""


class Format(Enum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_data(self) -> bool:
        return self in (Format.JSON, Format.YAML)


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """``style`` looks at the row: colour is a hint, the text says the same."""

    title: str
    text: Callable[[Row], str]
    wide: bool = False
    style: Callable[[Row], str] | None = None
    right: bool = False


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNLIMITED
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def table(columns: Sequence[Column[Row]], rows: Sequence[Row], *, wide: bool = False) -> Table:
    """kubectl's look: no lines, capital headings."""
    shown = [column for column in columns if wide or not column.wide]
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in shown:
        result.add_column(column.title, overflow="fold", justify="right" if column.right else "left")
    for row in rows:
        result.add_row(
            *(Text(printable(column.text(row)) or "-", column.style(row) if column.style else "") for column in shown)
        )
    return result


def emit(drawn: Table) -> None:
    """Print. Into a pipe without the blanks that fill the last column."""
    out = console()
    if out.is_terminal:
        out.print(drawn)
        return
    with out.capture() as text:
        out.print(drawn)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.get().splitlines()))


def plain(value: Any) -> Any:
    """Dataclasses, enums and tuples as what JSON and YAML know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(item) for item in value]
    return value


def dump(data: Any, form: Format) -> str:
    if form is Format.YAML:
        return yaml.safe_dump(plain(data), sort_keys=False, allow_unicode=True).rstrip("\n")
    return json.dumps(plain(data), indent=2)


def size(count: int) -> str:
    """Bytes for people: 999 B, 1.2 kB, 3.4 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(seconds: float) -> str:
    """As kubectl says it: 42s, 5m, 3h, 12d."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"
