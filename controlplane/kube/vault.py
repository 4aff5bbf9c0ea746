# SPDX-License-Identifier: Apache-2.0
"""The authority's directory in a Secret, so that the next leader goes on with the same keys.

The directory is a tmpfs of the pod; the Secret is its copy. It is written before the first certificate is signed, and
within a tick after a rotation: what a leader that dies in between loses is an announcement, never a root or issuer by
which a valid certificate can be verified (leaves bring their issuer along, and a root signs only after all nodes have
had it for the overlap).
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path

from controlplane.ca.storage import write_atomically
from mesh.sources.kubernetes.api import Api, Conflict, NotServed

log = logging.getLogger(__name__)

MAX_FILE = 256 * 1024
LABELS = {"app.kubernetes.io/name": "qanat", "app.kubernetes.io/component": "controlplane"}


class VaultError(Exception):
    """The Secret cannot be used; which, and why."""


class SecretVault:
    """Only the leader uses it. Keys are in memory here, never in a message."""

    def __init__(self, api: Api, namespace: str, name: str, directory: Path) -> None:
        self._api = api
        self._collection = f"api/v1/namespaces/{namespace}/secrets"
        self._where = f"Secret {namespace}/{name}"
        self._name = name
        self._directory = directory
        self._version = ""
        self._saved: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"SecretVault({self._where})"

    async def restore(self) -> bool:
        """Files as the Secret has them. False: there is none yet. Raises VaultError, ApiError."""
        try:
            found = await self._api.get(f"{self._collection}/{self._name}")
        except NotServed:
            return False
        self._version = str(found.get("metadata", {}).get("resourceVersion") or "")
        data = found.get("data") or {}
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in data.items():
            if Path(name).name != name or name.startswith("."):
                raise VaultError(f"{self._where}: {name!r} is not the name of a file of ours")
            try:
                content = base64.b64decode(str(text), validate=True)
            except binascii.Error:
                raise VaultError(f"{self._where}: {name}: not base64") from None
            write_atomically(self._directory / name, content, 0o600)
            self._saved[name] = content
        for path in self._directory.iterdir() if data else ():  # of an earlier process here that no longer led
            if path.is_file() and path.name not in data:
                path.unlink()
        return True

    async def save(self) -> bool:
        """The Secret as the files are. False: it was so already. Raises VaultError when somebody else wrote it."""
        files = self._files()
        if files == self._saved:
            return False
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "qanat.io/authority",
            "metadata": {"name": self._name, "labels": LABELS},
            "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
        }
        try:
            if self._version:
                body["metadata"] = {"name": self._name, "labels": LABELS, "resourceVersion": self._version}
                answer = await self._api.send("PUT", f"{self._collection}/{self._name}", body)
            else:
                answer = await self._api.send("POST", self._collection, body)
        except Conflict as error:
            raise VaultError(f"{self._where} was written by somebody else: is there a second leader?") from error
        self._version = str(answer.get("metadata", {}).get("resourceVersion") or "")
        self._saved = files
        log.info("authority saved", extra={"secret": self._where})
        return True

    def _files(self) -> dict[str, bytes]:
        found = {}
        for path in sorted(self._directory.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                content = path.read_bytes()
                if len(content) > MAX_FILE:
                    raise VaultError(f"{path}: more than {MAX_FILE} bytes")
                found[path.name] = content
        return found
