# SPDX-License-Identifier: Apache-2.0
"""The journal on disk: round trip, limits, crashes, two writers."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.journal.directory import Fetched, listing, name_of
from mesh.journal.encoding import Decoder, Encoder
from mesh.journal.flow import Direction, Flow, Lost, Party, Record, Verdict
from mesh.journal.flow import Path as Way
from mesh.journal.reader import Reading
from mesh.journal.segment import BLOCK_OVERHEAD, HEADER_SIZE, Header, seal_block, seal_header
from mesh.journal.writer import LOCK, Busy, Limits, Writer
from tests.unit.journal.builders import NOW, SECOND, flow, journal, ports, read, record, unwritten

SMALL = Limits(max_bytes=16 * 4096)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PARTY = st.builds(Party, TEXT, TEXT, TEXT, TEXT)
FLOW = st.builds(
    Flow,
    st.sampled_from(Direction),
    st.sampled_from(Way),
    st.sampled_from(Verdict),
    PARTY,
    PARTY,
    st.integers(0, 65535),
    TEXT,
    TEXT,
    st.lists(TEXT, max_size=4).map(tuple),
    TEXT,
)
MILLISECONDS = st.integers(0, 10**9)


@given(st.lists(st.tuples(FLOW, st.integers(1, 10**9), MILLISECONDS, MILLISECONDS), max_size=20))
def test_records_come_back_as_they_were(rows: list[tuple[Flow, int, int, int]]) -> None:
    entries: list[Record | Lost] = [
        Record(one, count, NOW - before * 1000, NOW + (length - before) * 1000) for one, count, before, length in rows
    ]

    found = list(Decoder().block(NOW, Encoder().block(NOW, [*entries, Lost(3)])))

    assert unwritten(found) == [*entries, Lost(3)]


def test_times_keep_to_the_millisecond() -> None:
    first, last = NOW - 61_234_567, NOW - 1_234_567

    (found,) = Decoder().block(NOW, Encoder().block(NOW, [Record(flow(), 2, first, last)]))

    assert isinstance(found, Record)
    assert abs(found.first_us - first) < 1000
    assert abs(found.last_us - last) < 2000


def test_journal_is_read_by_a_later_process(tmp_path: Path) -> None:
    journal(tmp_path, 2)
    Writer(tmp_path).append([record(port=3), Lost(7)], NOW + 9 * SECOND)

    entries, reading = read(tmp_path)

    assert ports(entries) == [1, 2, 3]
    assert entries[-1] == Lost(7, NOW + 9 * SECOND)
    assert (reading.findings, reading.torn) == ([], [])


def test_head_is_where_the_reader_ends(tmp_path: Path) -> None:
    writer = journal(tmp_path)

    _, reading = read(tmp_path)

    assert reading.head == writer.head


def test_repeated_flow_costs_a_few_bytes(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append([record()], NOW)
    before = listing(tmp_path)[0].size

    writer.append([record(count=50_000, at_us=NOW + 60 * SECOND)], NOW + 60 * SECOND)

    assert listing(tmp_path)[0].size - before - BLOCK_OVERHEAD <= 8


def test_size_stays_within_its_limit_and_the_newest_stay(tmp_path: Path) -> None:
    writer = Writer(tmp_path, SMALL)
    for number in range(120):
        at = NOW + number * SECOND
        writer.append([record(f"client-{number}-{n}", port=number, at_us=at) for n in range(40)], at)

        assert sum(one.size for one in listing(tmp_path)) <= SMALL.max_bytes + SMALL.segment_bytes
    entries, reading = read(tmp_path)

    assert max(ports(entries)) == 119
    assert min(ports(entries)) > 20
    assert reading.findings == []


def test_what_is_too_old_goes_without_traffic_too(tmp_path: Path) -> None:
    writer = journal(tmp_path, limits=Limits(max_age_s=3600))
    for one in listing(tmp_path):
        os.utime(one.path, (NOW / SECOND, NOW / SECOND))

    writer.append([], NOW + 3700 * SECOND)
    entries, reading = read(tmp_path)

    assert entries == []
    assert reading.findings == []
    writer.append([], NOW + 3800 * SECOND)
    assert [one.number for one in listing(tmp_path)] == [2]


def test_files_are_the_owners_only(tmp_path: Path) -> None:
    journal(tmp_path / "journal")

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "journal").iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700


@pytest.mark.parametrize("cut", [1, 8, BLOCK_OVERHEAD, BLOCK_OVERHEAD + 3])
def test_crash_in_the_middle_of_a_write_loses_that_block_only(tmp_path: Path, cut: int) -> None:
    journal(tmp_path, 3)
    path = listing(tmp_path)[0].path
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)

    after_crash, _ = read(tmp_path)
    Writer(tmp_path).append([record(port=4)], NOW + 9 * SECOND)
    entries, reading = read(tmp_path)

    assert ports(after_crash) == [1, 2]
    assert ports(entries) == [1, 2, 4]
    assert reading.findings == []
    assert len(reading.torn) == 1
    assert "cut short" in reading.torn[0]


def test_two_writers_of_one_directory_make_one_chain(tmp_path: Path) -> None:
    old, new = Writer(tmp_path), Writer(tmp_path)
    for number in range(6):
        at = NOW + number * SECOND
        (old, new)[number % 2].append([record(port=number, at_us=at)], at)

    entries, reading = read(tmp_path)

    assert ports(entries) == list(range(6))
    assert reading.findings == []


def test_writer_does_not_wait_for_another(tmp_path: Path) -> None:
    writer = journal(tmp_path, 1)
    with (tmp_path / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(Busy):
            writer.append([record(port=2)], NOW + 2 * SECOND)

    writer.append([record(port=2)], NOW + 2 * SECOND)
    assert ports(read(tmp_path)[0]) == [1, 2]


def test_full_disk_is_an_error_and_the_journal_goes_on_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = journal(tmp_path, 2)
    write = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) > 20:
            return write(fd, bytes(data)[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        writer.append([record(port=3)], NOW + 3 * SECOND)
    monkeypatch.undo()
    writer.append([record(port=4)], NOW + 4 * SECOND)
    entries, reading = read(tmp_path)

    assert ports(entries) == [1, 2, 4]
    assert reading.findings == []


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_as_a_segment_are_read_without_an_exception(data: bytes, at: int) -> None:
    """As a file, as a body under good hashes, and laid over a good segment."""
    head, digest = seal_header(Header(1, NOW, 1, bytes(32)))
    body, _ = seal_block(digest, NOW, data)
    good, _ = seal_block(digest, NOW, Encoder().block(NOW, [record(), record(port=2), Lost(1)]))
    whole = head + good

    for content in (data, head + data, head + body, whole[:at] + data + whole[at + len(data) :]):
        reading = Reading(Fetched(((1, content),)))
        list(reading.entries())


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name_of(3)).mkdir(parents=True)

    journal(tmp_path, 1)

    assert ports(read(tmp_path)[0]) == [1]
    assert listing(tmp_path)[0].size > HEADER_SIZE
