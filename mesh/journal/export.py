# SPDX-License-Identifier: Apache-2.0
"""The journal as JSON lines, each sealed with a hash of itself and the line before, and the check of such a file.

The first line says where the lines come from and the last how many there are, so a file that was cut at either end
shows it. Whoever can write the file can also seal it anew: against that, keep the last hash elsewhere (`anchor`) or
seal with a key that the file's keeper does not have (HMAC-SHA-256 instead of SHA-256).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mesh.journal.flow import Flow, Lost, Party, Record

VERSION = 1
_SEAL = ',"hash":"'
_HASH_CHARS = 64
_TAIL = len(_SEAL) + _HASH_CHARS + 2
MAX_LINE = 1 << 20
MAX_PROBLEMS = 100


class Seal:
    """The running hash. ``key`` empty: SHA-256, else HMAC-SHA-256."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key
        self.hash = "0" * _HASH_CHARS

    def next(self, body: str) -> str:
        data = f"{self.hash}\n{body}".encode("utf-8", "surrogatepass")
        digest = hmac.new(self._key, data, hashlib.sha256) if self._key else hashlib.sha256(data)
        self.hash = digest.hexdigest()
        return self.hash

    def line(self, value: Mapping[str, object]) -> str:
        body = json.dumps(value, separators=(",", ":"))[:-1]
        return f'{body}{_SEAL}{self.next(body)}"}}'


def lines(about: Mapping[str, object], entries: Iterable[Mapping[str, object]], key: bytes = b"") -> Iterator[str]:
    """``about``: what the first line says of the export, beside its version."""
    seal = Seal(key)
    yield seal.line({"qanatAudit": VERSION, "keyed": bool(key), **about})
    count = 0
    for entry in entries:
        count += 1
        yield seal.line(entry)
    yield seal.line({"end": True, "entries": count})


def shown(entry: Record | Lost, node: str, program: str) -> dict[str, object]:
    """One entry as people and programs read it."""
    place = {"written": moment(entry.written_us), "node": node, "program": program}
    if isinstance(entry, Lost):
        return {**place, "lost": entry.count}
    times = {"count": entry.count, "first": moment(entry.first_us), "last": moment(entry.last_us)}
    return {**place, **times, **shown_flow(entry.flow)}


def shown_flow(flow: Flow) -> dict[str, object]:
    """Empty fields are left out."""
    return {
        "direction": flow.direction.name.lower(),
        "path": flow.path.name.lower(),
        "verdict": flow.verdict.name.lower(),
        "source": _party(flow.source),
        "destination": {**_party(flow.destination), "port": flow.port},
        **({"service": flow.service} if flow.service else {}),
        **({"rule": flow.rule} if flow.rule else {}),
        **({"noted": list(flow.noted)} if flow.noted else {}),
        **({"error": flow.error} if flow.error else {}),
    }


def _party(party: Party) -> dict[str, object]:
    found = {"identity": party.identity, "workload": party.workload, "owner": party.owner, "ip": party.ip}
    return {key: value for key, value in found.items() if value}


def moment(time_us: int) -> str:
    """RFC 3339 in UTC, to the millisecond; a time no calendar has becomes the last one that it has."""
    try:
        text = datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return "9999-12-31T23:59:59.999Z"
    return text.replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Check:
    """``problems``: one sentence each, empty when the file is as it was made. ``hash``: of its last line."""

    entries: int
    hash: str
    problems: tuple[str, ...]


def verify(text: Iterable[str], key: bytes = b"", anchor: str = "") -> Check:
    """Lines of an export, with or without their ends. ``anchor``: the last hash, as it was noted when it was made."""
    seal = Seal(key)
    problems: list[str] = []
    number = entries = 0
    ended = 0
    for number, raw in enumerate(text, 1):
        line = raw.rstrip("\r\n")
        parts = _parts(line)
        if parts is None:
            problems.append(f"line {number}: not a line of an export")
            break
        body, digest, value = parts
        if number == 1 and (trouble := _wrong_start(value, key)):
            problems.append(trouble)
            break
        if seal.next(body) != digest:
            problems.append(f"line {number}: does not match its hash: it, its place or a line before it was changed")
            seal.hash = digest  # go on: every place that was touched is worth naming
        if ended:
            problems.append(f"line {number}: stands behind the end")
        elif value.get("end") is True:
            ended = number
            if value.get("entries") != entries:
                problems.append(f"line {number}: says {value.get('entries')} entries, there are {entries}")
        elif number > 1:
            entries += 1
        if len(problems) >= MAX_PROBLEMS:
            problems.append("and more")
            break
    if not problems and not ended:
        problems.append("the last line is missing: the file was cut short" if number else "the file is empty")
    if not problems and anchor and anchor.strip().lower() != seal.hash:
        problems.append(f"ends with {seal.hash}, not with the anchor: it was made anew, or cut and sealed again")
    return Check(entries, seal.hash, tuple(problems))


def _parts(line: str) -> tuple[str, str, Mapping[str, object]] | None:
    """(what is sealed, its hash, parsed)."""
    cut = len(line) - _TAIL
    if cut < 1 or len(line) > MAX_LINE or line[cut : cut + len(_SEAL)] != _SEAL or not line.endswith('"}'):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return (line[:cut], line[cut + len(_SEAL) : -2], value) if isinstance(value, dict) else None


def _wrong_start(value: Mapping[str, object], key: bytes) -> str:
    if value.get("qanatAudit") != VERSION:
        return f"line 1: not the beginning of an export of version {VERSION}: lines before it are missing"
    if bool(value.get("keyed")) != bool(key):
        return "line 1: was sealed with a key: give it" if value.get("keyed") else "line 1: was sealed without a key"
    return ""
