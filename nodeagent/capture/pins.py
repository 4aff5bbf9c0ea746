# SPDX-License-Identifier: Apache-2.0
"""What stays in bpffs: /sys/fs/bpf/qanat/<instance>/v<schema>/{maps,links}/."""

from __future__ import annotations

import contextlib
import errno
import re
from dataclasses import dataclass
from pathlib import Path

from nodeagent.bpf.descriptors import Link
from nodeagent.bpf.layouts import SCHEMA_VERSION
from nodeagent.bpf.libbpf import BpfError
from nodeagent.capture.errors import CaptureError
from nodeagent.capture.mounts import BPFFS

ROOT = BPFFS / "qanat"
_CREATE_TRIES = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,120}")  # bpffs allows no dots


def instance_dir(instance: str) -> Path:
    """Raises CaptureError for a name bpffs would not take."""
    if not _NAME.fullmatch(instance):
        raise CaptureError(f"{instance!r} cannot name an instance: letters, digits, '-' and '_' only")
    return ROOT / instance


@dataclass(frozen=True, slots=True)
class Pins:
    """The directories of one instance at the current schema."""

    base: Path

    @property
    def maps(self) -> Path:
        return self.base / "maps"

    @property
    def links(self) -> Path:
        return self.base / "links"

    def create(self) -> None:
        """Another instance's purge may remove the empty root at any moment, until there is something below it."""
        for tries_left in reversed(range(_CREATE_TRIES)):
            try:
                self.maps.mkdir(mode=0o700, parents=True, exist_ok=True)
                break
            except FileNotFoundError:
                if not tries_left:
                    raise
        self.links.mkdir(mode=0o700, exist_ok=True)
        for path in (ROOT, self.base.parent, self.base):
            path.chmod(0o700)
        for left in self.base.glob("bcc-*"):  # of an agent that died while BCC was at work
            _remove(left, links=False)

    def inbound(self, cookie: int) -> Path:
        return self.links / f"inbound-{cookie}"

    def inbound_cookies(self) -> set[int]:
        return {int(path.name.removeprefix("inbound-")) for path in self.links.glob("inbound-*")}


def pins_of(instance: str) -> Pins:
    return Pins(instance_dir(instance) / f"v{SCHEMA_VERSION}")


def drop_link(path: Path) -> None:
    """Detach and unpin; a pin that is gone already, or whose target is, is fine."""
    try:
        with Link.pinned(path) as link, contextlib.suppress(BpfError):
            link.detach()
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
    path.unlink(missing_ok=True)


def instances() -> list[str]:
    """Names with anything pinned, ours or left over."""
    try:
        return sorted(path.name for path in ROOT.iterdir())
    except FileNotFoundError:  # the last one is gone, and the root with it
        return []


def stale_schemas(instance: str) -> list[Path]:
    """Directories of this instance left by another version of Qanat; `purge` removes them."""
    base = instance_dir(instance)
    return sorted(path for path in base.iterdir() if path.name != f"v{SCHEMA_VERSION}") if base.is_dir() else []


def _remove(path: Path, *, links: bool) -> None:
    for child in path.iterdir():
        if child.is_dir():
            _remove(child, links=child.name == "links")
        elif links:
            drop_link(child)
        else:
            child.unlink(missing_ok=True)
    path.rmdir()


def purge(instance: str, *, only: Path | None = None) -> bool:
    """Detach and remove everything of an instance (all schemas; `only` = one directory of stale_schemas). Capture
    ends; open connections live on. False: there was nothing."""
    base = only or instance_dir(instance)
    if not base.is_dir():
        return False
    # Links first: maps without programs are harmless, programs without agents are not.
    for links in sorted(base.glob("v*/links")) + ([base / "links"] if (base / "links").is_dir() else []):
        for pin in links.iterdir():
            drop_link(pin)
    _remove(base, links=False)
    with contextlib.suppress(OSError):
        ROOT.rmdir()
    return True
