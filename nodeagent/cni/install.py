# SPDX-License-Identifier: Apache-2.0
"""Puts the plugin into the node's CNI configuration, keeps it there, and takes it out again without a trace.

The runtime uses the first configuration by name; the plugin goes to the end of that one's chain. Files are replaced
atomically; everything of others in them stays as it is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TYPE = "qanat-cni"
SUFFIXES = (".conflist", ".conf", ".json")
MAX_BYTES = 1 << 20


class CniConfigError(Exception):
    """The node's CNI configuration cannot be used; which file, and why."""


@dataclass(frozen=True, slots=True)
class CniInstall:
    """``binary``: the plugin as it comes with the agent. ``entry``: its fields in the chain, beside ``type``."""

    binary: Path
    bin_dir: Path
    conf_dir: Path
    entry: Mapping[str, Any] = field(default_factory=dict)

    def ensure(self) -> bool:
        """The plugin is there, executable and last in the first chain, and in no other. True when something was
        changed. Raises CniConfigError, OSError."""
        changed = self._ensure_binary()
        chosen = self._first()
        if chosen is None:
            raise CniConfigError(f"{self.conf_dir}: no CNI configuration yet; the cluster's network plugin writes one")
        for path in self._files():
            if path != chosen:
                changed |= _write_without(path)
        return self._ensure_entry(chosen) or changed

    def remove(self) -> bool:
        """Out of every chain, then the binary. True when something was there."""
        changed = False
        for path in self._files():
            try:
                changed |= _write_without(path)
            except CniConfigError as error:
                log.warning("left as it is: %s", error)
        target = self.bin_dir / TYPE
        if target.exists():
            target.unlink()
            changed = True
        return changed

    def _files(self) -> list[Path]:
        if not self.conf_dir.is_dir():
            return []
        found = (path for path in self.conf_dir.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
        return sorted(path for path in found if path.is_file())

    def _first(self) -> Path | None:
        return next(iter(self._files()), None)

    def _ensure_binary(self) -> bool:
        target, wanted = self.bin_dir / TYPE, self.binary.read_bytes()
        if target.is_file() and target.read_bytes() == wanted and os.access(target, os.X_OK):
            return False
        self.bin_dir.mkdir(parents=True, exist_ok=True)
        fresh = self.bin_dir / f".{TYPE}.new"
        shutil.copyfile(self.binary, fresh)
        fresh.chmod(0o755)
        fresh.rename(target)
        return True

    def _ensure_entry(self, path: Path) -> bool:
        config = _read(path)
        entry = {"type": TYPE, **self.entry}
        if "plugins" not in config:  # one plugin alone: a chain of the same name stands before it in the order
            chain = {"cniVersion": config.get("cniVersion", "0.3.1"), "name": config.get("name", "network")}
            _write(path.with_suffix(".conflist"), {**chain, "plugins": [config, entry]})
            path.rename(path.with_name(f"{path.name}{_ASIDE}"))
            return True
        others = [one for one in config["plugins"] if not _is_ours(one)]
        wanted = [*others, entry]
        if config["plugins"] == wanted:
            return False
        _write(path, {**config, "plugins": wanted})
        return True


_ASIDE = ".before-qanat"
"""A configuration of one plugin waits under this name while a chain stands for it."""


def _is_ours(plugin: object) -> bool:
    return isinstance(plugin, dict) and plugin.get("type") == TYPE


def _write_without(path: Path) -> bool:
    """Without our entry. A chain that we made of a single plugin becomes that plugin's file again."""
    config = _read(path)
    plugins = config.get("plugins", [])
    others = [one for one in plugins if not _is_ours(one)]
    if len(others) == len(plugins):
        return False
    for suffix in (".conf", ".json"):
        aside = path.with_suffix(suffix).with_name(f"{path.stem}{suffix}{_ASIDE}")
        if aside.exists():
            aside.rename(path.with_suffix(suffix))
            path.unlink()
            return True
    _write(path, {**config, "plugins": others})
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        found = json.loads(data) if len(data) <= MAX_BYTES else None
    except ValueError as error:
        raise CniConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("plugins", []), list):
        raise CniConfigError(f"{path}: not a CNI configuration (an object, with a list of plugins in a .conflist)")
    if "plugins" not in found and not isinstance(found.get("type"), str):
        raise CniConfigError(f"{path}: names neither plugins nor a type")
    return found


def _write(path: Path, config: Mapping[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.qanat-new")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    fresh.rename(path)
