# SPDX-License-Identifier: Apache-2.0
"""A directory as an OCI image of one layer: a tar file for `ctr images import`, `podman load` or `skopeo copy`.

The same files give the same bytes: owners are root, times are 0, entries are sorted.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image"


def architecture() -> str:
    """This machine's, by OCI's name."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True, slots=True)
class Image:
    """``entrypoint`` empty: the pod names its command."""

    name: str
    entrypoint: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def configuration(self, layer_digest: str) -> dict[str, Any]:
        return {
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": list(self.entrypoint),
                "Env": [f"{name}={value}" for name, value in sorted(self.environment.items())],
                "Labels": dict(self.labels),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }


def write(image: Image, root: Path, to: Path) -> int:
    """Atomically; returns the layer's size in bytes."""
    layer_file = to.with_name(f".{to.name}.layer")
    try:
        _write_layer(root, layer_file)
        size, layer_digest = layer_file.stat().st_size, _digest_of(layer_file)
        configuration = json.dumps(image.configuration(layer_digest)).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{_MEDIA}.manifest.v1+json",
                "config": _described(f"{_MEDIA}.config.v1+json", configuration),
                "layers": [{"mediaType": f"{_MEDIA}.layer.v1.tar", "digest": layer_digest, "size": size}],
            }
        ).encode()
        index = _index(image, manifest)
        fresh = to.with_name(f".{to.name}.new")
        with tarfile.open(fresh, "w") as archive:
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add(archive, "index.json", json.dumps(index).encode())
            for blob in (configuration, manifest):
                _add(archive, _blob_path(_digest(blob)), blob)
            info = tarfile.TarInfo(_blob_path(layer_digest))
            info.size = size
            with layer_file.open("rb") as file:
                archive.addfile(info, file)
        fresh.rename(to)
    finally:
        layer_file.unlink(missing_ok=True)
    return size


def _index(image: Image, manifest: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "manifests": [
            {
                **_described(f"{_MEDIA}.manifest.v1+json", manifest),
                "platform": {"architecture": architecture(), "os": "linux"},
                "annotations": {
                    "io.containerd.image.name": image.name,
                    "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
                },
            }
        ],
    }


def _write_layer(root: Path, to: Path) -> None:
    with tarfile.open(to, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            archive.add(path, str(path.relative_to(root)), recursive=False, filter=_anonymous)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _described(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _blob_path(digest: str) -> str:
    return os.path.join("blobs", *digest.split(":"))
