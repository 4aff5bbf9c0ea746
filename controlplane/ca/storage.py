# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and survive a power cut."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Never with a wider mode than `mode`; on return the file and its name are on disk. Raises OSError."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_staged(directory: Path) -> None:
    """What write_atomically() left when the machine stopped in the middle."""
    for path in directory.glob(".*.pem.????????"):
        path.unlink(missing_ok=True)
    for path in directory.glob(".state.json.????????"):
        path.unlink(missing_ok=True)
