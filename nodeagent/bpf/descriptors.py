# SPDX-License-Identifier: Apache-2.0
"""Maps, links and programs of the kernel as classes with `close()`.

Descriptors are owned by the instances; whoever asks for `.fd` borrows it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeagent.bpf.libbpf import BpfError, check, ffi, lib

# enum bpf_attach_type, linux/bpf.h (stable ABI)
CGROUP_INET_INGRESS = 0
CGROUP_SOCK_OPS = 3
SK_MSG_VERDICT = 7
SK_LOOKUP = 36
SK_SKB_VERDICT = 38


@dataclass(frozen=True, slots=True)
class MapInfo:
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_key_size: int
    btf_value_size: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """netns_inode: 0 for a dead network-namespace link, and for links of other kinds."""

    type: int
    id: int
    prog_id: int
    attach_type: int
    cgroup_id: int
    netns_inode: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """tag: the kernel's hash of the instructions, in hex."""

    type: int
    id: int
    tag: str
    name: str


class _Descriptor:
    """A descriptor of the kernel's BPF objects, owned."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._fd

    @classmethod
    def pinned(cls, path: Path) -> Self:
        """Open a pin. Raises BpfError (ENOENT: not there)."""
        return cls(check(lib.qnb_get(bytes(path)), f"open pin {path}"))

    def pin(self, path: Path) -> None:
        check(lib.qnb_pin(self.fd, bytes(path)), f"pin {path}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Program(_Descriptor):
    """A loaded program of its own, not part of an object file."""

    def info(self) -> ProgramInfo:
        return program_info(self.fd)


def program_info(fd: int) -> ProgramInfo:
    raw = ffi.new("struct qnb_prog_info *")
    check(lib.qnb_prog_info(fd, raw), "program info")
    return ProgramInfo(int(raw.type), int(raw.id), bytes(ffi.buffer(raw.tag)).hex(), ffi.string(raw.name).decode())


class Map(_Descriptor):
    """Keys and values are bytes of exactly the map's sizes, in the layouts of qanat.h."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        raw = ffi.new("struct qnb_map_info *")
        check(lib.qnb_map_info(fd, raw), "map info")
        self.info = MapInfo(*(int(getattr(raw, name)) for name in MapInfo.__slots__))

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.info.key_size:
            raise ValueError(f"key of {len(key)} bytes, map has {self.info.key_size}")
        return key

    def lookup(self, key: bytes) -> bytes | None:
        """One value. For a per-CPU map use `lookup_per_cpu`."""
        value = ffi.new("char[]", self.info.value_size)
        found = lib.qnb_map_lookup(self.fd, self._key(key), value)
        if found == -errno.ENOENT:
            return None
        check(found, "map lookup")
        return bytes(ffi.buffer(value, self.info.value_size))

    def lookup_per_cpu(self, key: bytes) -> list[bytes]:
        """The value of every possible CPU."""
        stride = (self.info.value_size + 7) // 8 * 8
        cpus = check(lib.qnb_possible_cpus(), "possible CPUs")
        value = ffi.new("char[]", stride * cpus)
        check(lib.qnb_map_lookup(self.fd, self._key(key), value), "map lookup")
        raw = bytes(ffi.buffer(value, stride * cpus))
        return [raw[at : at + self.info.value_size] for at in range(0, len(raw), stride)]

    def update(self, key: bytes, value: bytes) -> None:
        if len(value) != self.info.value_size:
            raise ValueError(f"value of {len(value)} bytes, map has {self.info.value_size}")
        check(lib.qnb_map_update(self.fd, self._key(key), value, 0), "map update")

    def update_per_cpu(self, key: bytes, value: bytes) -> None:
        """The same value for every possible CPU."""
        stride = (self.info.value_size + 7) // 8 * 8
        cpus = check(lib.qnb_possible_cpus(), "possible CPUs")
        check(lib.qnb_map_update(self.fd, self._key(key), value.ljust(stride, b"\0") * cpus, 0), "map update")

    def delete(self, key: bytes) -> bool:
        """False: there was no such entry (array-like maps answer EINVAL to an empty slot)."""
        gone = lib.qnb_map_delete(self.fd, self._key(key))
        if gone in (-errno.ENOENT, -errno.EINVAL):
            return False
        check(gone, "map delete")
        return True

    def attach(self, prog_fd: int, attach_type: int) -> None:
        """Socket maps: `prog_fd` judges the sockets that enter from now on, in place of an earlier one of the type."""
        check(lib.qnb_map_attach(prog_fd, self.fd, attach_type), f"attach to map (type {attach_type})")

    def keys(self) -> list[bytes]:
        """A snapshot; entries that come or go meanwhile may be missed, none is repeated by an unchanged map."""
        found: list[bytes] = []
        key = ffi.NULL
        while len(found) <= self.info.max_entries:
            following = ffi.new("char[]", self.info.key_size)
            more = lib.qnb_map_next_key(self.fd, key, following)
            if more == -errno.ENOENT:
                break
            check(more, "map iteration")
            found.append(bytes(ffi.buffer(following, self.info.key_size)))
            key = following
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value


class Ring:
    """Reader of a ring buffer map whose records all have one size. `fd` polls as readable when there may be some."""

    def __init__(self, map_fd: int, record_size: int) -> None:
        err = ffi.new("int *")
        self._size = record_size
        self._raw = lib.qnb_ring_open(map_fd, record_size, err)
        if self._raw == ffi.NULL:
            raise BpfError(-err[0], "open ring buffer")

    @property
    def fd(self) -> int:
        return int(lib.qnb_ring_fd(self._raw))

    def read(self, at_most: int) -> list[bytes]:
        """Takes them out; a lost record is counted by its writer."""
        records = ffi.new("char[]", self._size * at_most)
        n = check(lib.qnb_ring_read(self._raw, records, at_most), "read ring buffer")
        raw = bytes(ffi.buffer(records, n * self._size))
        return [raw[at : at + self._size] for at in range(0, len(raw), self._size)]

    def close(self) -> None:
        if self._raw != ffi.NULL:
            lib.qnb_ring_close(self._raw)
            self._raw = ffi.NULL


class Link(_Descriptor):
    """An attachment; it lives as long as a descriptor or a pin."""

    @classmethod
    def attach(cls, prog_fd: int, target_fd: int, attach_type: int) -> Self:
        """target_fd: a cgroup directory or a network namespace. Links on cgroups always share the hook."""
        return cls(check(lib.qnb_link_create(prog_fd, target_fd, attach_type), f"attach (type {attach_type})"))

    def update(self, prog_fd: int) -> None:
        """Swap the program; no packet or call sees neither."""
        check(lib.qnb_link_update(self.fd, prog_fd), "link update")

    def detach(self) -> None:
        check(lib.qnb_link_detach(self.fd), "link detach")

    def info(self) -> LinkInfo:
        raw = ffi.new("struct qnb_link_info *")
        check(lib.qnb_link_info(self.fd, raw), "link info")
        return LinkInfo(*(int(getattr(raw, name)) for name in LinkInfo.__slots__))


def iterate(prog_fd: int, map_fd: int) -> bytes:
    """All that an iterator program writes about the elements of a map."""
    fd = check(lib.qnb_iter_open(prog_fd, map_fd), "iterate over map")
    with open(fd, "rb", buffering=0) as stream:
        parts = []
        while part := stream.read(65536):
            parts.append(part)
    return b"".join(parts)
