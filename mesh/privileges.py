"""Give up what a process does not need: capabilities, core dumps, set-user-id programs.

Linux keeps capabilities per thread, so all of this must run before the process has a second one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Collection, Iterable
from enum import IntEnum
from pathlib import Path

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522


class Capability(IntEnum):
    """Those our programs name (linux/capability.h)."""

    DAC_READ_SEARCH = 2
    SETPCAP = 8
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_ADMIN = 21
    PERFMON = 38
    BPF = 39


class PrivilegeError(OSError):
    """The kernel refused to take a privilege away; going on would mean running with more than was agreed."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


CODE = (Path(__file__).parent.parent, Path(sys.prefix), Path(sys.base_prefix))
"""Where our programs and their libraries are; modules are still imported after privileges are gone."""

_libc = ctypes.CDLL(None, use_errno=True)


def permitted() -> frozenset[int]:
    """Numbers of the capabilities this thread may use."""
    sets = (_Set * 2)()
    _check(_libc.capget(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets), "capget")
    mask = sets[0].permitted | sets[1].permitted << 32
    return frozenset(number for number in range(64) if mask >> number & 1)


def keep_only(wanted: Collection[Capability]) -> frozenset[Capability]:
    """Keep those of `wanted` that we have, drop all others from every set, for ever; returns what is left.

    A process without CAP_SETPCAP cannot shrink its bounding set; then only its own sets shrink, which
    no_new_privs makes as good. Raises PrivilegeError."""
    have = permitted()
    kept = frozenset(one for one in wanted if one in have)
    if Capability.SETPCAP in have:
        for number in range(_last_capability() + 1):
            if number not in kept:
                _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), f"drop capability {number}")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient capabilities")
    mask = sum(1 << one for one in kept)
    sets = (_Set * 2)()
    for half in (0, 1):
        part = mask >> 32 * half & 0xFFFFFFFF
        sets[half] = _Set(effective=part, permitted=part, inheritable=0)
    _check(_libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets), "capset")
    return kept


def closed_to_us(paths: Iterable[Path]) -> Path | None:
    """The first directory or file on the way to or directly in `paths` that this user may not read by its mode alone:
    root without CAP_DAC_READ_SEARCH is an ordinary user to files of others, as in a home directory of mode 0750."""
    for path in paths:
        place = path.absolute()
        steps: list[Path] = [*reversed(place.parents), place, *(sorted(place.iterdir()) if place.is_dir() else ())]
        for step in steps:
            if not _is_open(step, way_through=step in place.parents):
                return step
    return None


def _is_open(path: Path, *, way_through: bool) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return True  # not there: no matter of privilege
    wanted = 0o1 if way_through else 0o5 if path.is_dir() else 0o4
    if stat.st_uid == os.geteuid():
        shift = 6
    elif stat.st_gid in (os.getegid(), *os.getgroups()):
        shift = 3
    else:
        shift = 0
    return stat.st_mode >> shift & wanted == wanted


def no_new_privileges() -> None:
    """No program we start can gain what we gave up."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def hide_memory() -> None:
    """No core dump, no ptrace by the same user: memory that holds keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def raise_open_files() -> int:
    """Soft limit of descriptors to the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise PrivilegeError(number, f"{what}: {os.strerror(number)}")
