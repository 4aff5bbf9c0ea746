# SPDX-License-Identifier: Apache-2.0
"""Small secrets in the kernel's memory: a keyring of this user's that outlives every process and no reboot.

The kernel swaps none of it out and writes it to no disk, forgets each entry at the end of its time, and gives it only
to who has linked this user's keyring to itself (keyrings(7), "possession"). Some container runtimes forbid the system
calls; then everything here raises OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import Any

_NUMBERS = {"x86_64": (248, 250), "aarch64": (217, 219)}
"""add_key, keyctl."""

_USER_KEYRING = -4
_PROCESS_KEYRING = -2
_DESCRIBE, _LINK, _UNLINK, _SEARCH, _READ, _SET_TIMEOUT = 6, 8, 9, 10, 11, 15

PAYLOAD_MAX = 32767
"""The kernel's, of a key of type `user`."""

_libc = ctypes.CDLL(None, use_errno=True)


def node_keyring(mesh: str, node: str = "") -> str:
    """Name of what a node's ztunnel keeps for its successor; without `node`, what those of a mesh begin with."""
    return f"qanat:{mesh}/{node}"


class Keyring:
    """One keyring by name. One thread: possession is the calling thread's process keyring's."""

    def __init__(self, name: str) -> None:
        """Opens it, or makes it. Raises OSError."""
        _keyctl(_LINK, _USER_KEYRING, _PROCESS_KEYRING)
        found = _search(_USER_KEYRING, "keyring", name)
        self._ring = _add("keyring", name, None, _USER_KEYRING) if found is None else found

    def put(self, name: str, payload: bytes, ttl_s: float) -> None:
        """Replaces what has that name. Raises OSError, also when it is longer than PAYLOAD_MAX or there is no room."""
        if len(payload) > PAYLOAD_MAX:
            raise OSError(errno.EMSGSIZE, f"{len(payload)} bytes are more than the kernel keeps in one key")
        key = _add("user", name, payload, self._ring)
        _keyctl(_SET_TIMEOUT, key, max(1, int(ttl_s)))

    def get(self, name: str) -> bytes | None:
        """Raises OSError."""
        key = _search(self._ring, "user", name)
        return None if key is None else _read(key)

    def remove(self, name: str) -> None:
        """Whether it is there or not. Raises OSError."""
        key = _search(self._ring, "user", name)
        if key is not None:
            _keyctl(_UNLINK, key, self._ring)

    def names(self) -> list[str]:
        """Of everything that has not ended. Raises OSError."""
        return [name for _, name in _listing(self._ring)]


def remove(prefix: str) -> list[str]:
    """Keyrings whose name begins so, with all that is in them; their names. Raises OSError."""
    found = [(key, name) for key, name in _listing(_USER_KEYRING) if name.startswith(prefix)]
    for key, _ in found:
        _keyctl(_UNLINK, key, _USER_KEYRING)
    return [name for _, name in found]


def _listing(ring: int) -> list[tuple[int, str]]:
    data = _read(ring)
    keys = [int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, len(data), 4)]
    return [(key, name) for key in keys if (name := _name(key)) is not None]


def _name(key: int) -> str | None:
    """None: it has ended meanwhile."""
    buffer = ctypes.create_string_buffer(4200)
    try:
        _keyctl(_DESCRIBE, key, buffer, ctypes.c_size_t(len(buffer)))
    except OSError as error:
        if error.errno in (errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EACCES):
            return None
        raise
    return buffer.value.decode("utf-8", "replace").split(";", 4)[4]  # type;uid;gid;permissions;name


def _search(ring: int, kind: str, name: str) -> int | None:
    try:
        return _keyctl(_SEARCH, ring, kind.encode(), name.encode(), 0)
    except OSError as error:
        if error.errno in (errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED):
            return None
        raise


def _read(key: int) -> bytes:
    size = PAYLOAD_MAX + 1
    while True:
        buffer = ctypes.create_string_buffer(size)
        try:
            needed = _keyctl(_READ, key, buffer, ctypes.c_size_t(size))
            if needed <= size:
                return buffer.raw[:needed]
            size = needed  # a keyring that has grown
        finally:
            ctypes.memset(buffer, 0, len(buffer))


def _add(kind: str, name: str, payload: bytes | None, ring: int) -> int:
    number = _numbers()[0]
    length = ctypes.c_size_t(len(payload or b""))
    return _result(_libc.syscall(number, kind.encode(), name.encode(), payload, length, ctypes.c_int(ring)))


def _keyctl(operation: int, *arguments: Any) -> int:
    whole = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _result(_libc.syscall(_numbers()[1], ctypes.c_long(operation), *whole))


def _result(value: int) -> int:
    if value >= 0:
        return value
    number = ctypes.get_errno()
    raise OSError(number, f"kernel keyring: {os.strerror(number)}")


def _numbers() -> tuple[int, int]:
    try:
        return _NUMBERS[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"kernel keyring: not known how on {platform.machine()}") from None
