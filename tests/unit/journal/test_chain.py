# SPDX-License-Identifier: Apache-2.0
"""Changes of the journal on disk are found."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mesh.journal.directory import Fetched, listing, name_of
from mesh.journal.reader import Reading
from mesh.journal.segment import HEADER_SIZE, Block, blocks, open_header
from mesh.journal.writer import Limits, Writer
from tests.unit.journal.builders import NOW, SECOND, journal, ports, read, record

A_SEGMENT_EACH = Limits(max_bytes=1 << 30, max_age_s=16)
"""A segment is full after a second."""


def cut_blocks(path: Path) -> list[bytes]:
    data = path.read_bytes()
    opened = open_header(data)
    assert opened is not None
    ends = [HEADER_SIZE, *(found.end for found in blocks(data, opened[1]) if isinstance(found, Block))]
    return [data[: ends[0]], *(data[a:b] for a, b in itertools.pairwise(ends))]


def test_untouched_journal_has_no_findings(tmp_path: Path) -> None:
    journal(tmp_path, 5, A_SEGMENT_EACH)

    entries, reading = read(tmp_path)

    assert len(listing(tmp_path)) > 2
    assert ports(entries) == [1, 2, 3, 4, 5]
    assert (reading.findings, reading.torn) == ([], [])


@pytest.mark.parametrize("offset", [HEADER_SIZE + 5, HEADER_SIZE + 30, -40, -1])
def test_edited_byte_of_a_block_is_found(tmp_path: Path, offset: int) -> None:
    journal(tmp_path)
    path = listing(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)

    _, reading = read(tmp_path)

    assert len(reading.findings) == 1
    assert f"{name_of(1)}, byte" in reading.findings[0]


def test_edited_header_is_found(tmp_path: Path) -> None:
    journal(tmp_path)
    path = listing(tmp_path)[0].path
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)

    assert read(tmp_path)[1].findings == [f"{name_of(1)} has no header"]


def test_removed_block_is_found(tmp_path: Path) -> None:
    journal(tmp_path)
    path = listing(tmp_path)[0].path
    head, first, _, third = cut_blocks(path)
    path.write_bytes(head + first + third)

    assert "does not match its hash" in read(tmp_path)[1].findings[0]


def test_blocks_in_another_order_are_found(tmp_path: Path) -> None:
    journal(tmp_path)
    path = listing(tmp_path)[0].path
    head, first, second, third = cut_blocks(path)
    path.write_bytes(head + second + first + third)

    assert "does not match its hash" in read(tmp_path)[1].findings[0]


def test_segment_cut_at_a_block_is_found_by_the_next_one(tmp_path: Path) -> None:
    journal(tmp_path, 6, A_SEGMENT_EACH)
    path = listing(tmp_path)[1].path
    path.write_bytes(b"".join(cut_blocks(path)[:-1]))

    found = read(tmp_path)[1].findings
    assert found == [f"{name_of(3)} does not go on from where {name_of(2)} ends: blocks are missing there"]


def test_end_cut_at_a_block_is_found_by_the_head(tmp_path: Path) -> None:
    """Nothing behind it could know; that is what the writer's head is for."""
    head = journal(tmp_path).head
    path = listing(tmp_path)[0].path
    path.write_bytes(b"".join(cut_blocks(path)[:-1]))

    assert read(tmp_path)[1].findings == []
    assert "that end is missing" in read(tmp_path, head)[1].findings[0]


def test_head_that_others_went_on_from_is_no_finding(tmp_path: Path) -> None:
    head = journal(tmp_path, 2).head
    journal(tmp_path, 4)

    assert read(tmp_path, head)[1].findings == []


def test_head_whose_segment_the_limits_have_dropped_is_no_finding(tmp_path: Path) -> None:
    head = journal(tmp_path, 1, Limits(max_bytes=16 * 4096)).head
    writer = Writer(tmp_path, Limits(max_bytes=16 * 4096))
    for number in range(80):
        at = NOW + (number + 2) * SECOND
        writer.append([record(f"client-{number}-{n}", port=n, at_us=at) for n in range(40)], at)

    assert listing(tmp_path)[0].number > 1
    assert read(tmp_path, head)[1].findings == []


def test_removed_segment_is_found_in_the_middle_and_at_the_start(tmp_path: Path) -> None:
    journal(tmp_path, 8, A_SEGMENT_EACH)
    files = listing(tmp_path)
    assert len(files) >= 4
    files[1].path.unlink()

    middle = read(tmp_path)[1].findings
    files[0].path.unlink()
    start = read(tmp_path)[1].findings

    assert middle == [f"1 segment is missing before {name_of(3)}"]
    assert start == ["the limits had left segments from 1, the first that is there is 3"]


def test_segments_that_the_limits_drop_while_it_is_read_are_no_finding(tmp_path: Path) -> None:
    journal(tmp_path, 8, A_SEGMENT_EACH)
    parts = [(one.number, one.path.read_bytes()) for one in listing(tmp_path)]

    reading = Reading(Fetched(((1, None), (2, None), *parts[2:])))
    late = Reading(Fetched((parts[0], (2, None), *parts[2:])))

    assert max(ports(reading.entries())) == 8
    assert reading.findings == []
    assert list(late.entries())
    assert late.findings


def test_swapped_segments_are_found(tmp_path: Path) -> None:
    journal(tmp_path, 6, A_SEGMENT_EACH)
    first, second = (one.path for one in listing(tmp_path)[:2])
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)

    assert "is segment 2 under another name" in read(tmp_path)[1].findings[0]
