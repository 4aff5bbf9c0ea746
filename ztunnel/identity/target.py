# SPDX-License-Identifier: Apache-2.0
"""``--ca``: which kind of authority, and where."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from ztunnel.identity.client import CertificateSource
from ztunnel.identity.files import FilesSource
from ztunnel.identity.grpc_client import GrpcCaClient
from ztunnel.identity.requesting import RequestingSource

FORMS = "unix:/path/to/ca.sock, https://host:port or file:/directory"


class BadTarget(ValueError):
    """Not one of FORMS; the message says which part."""


def source(target: str, token_file: Path, root_file: Path | None) -> CertificateSource:
    """Makes no connection and reads no file yet. Raises BadTarget."""
    kind, _, rest = target.partition(":")
    match kind:
        case "unix":
            return RequestingSource(GrpcCaClient(f"unix:{_absolute(target, rest)}", token_file))
        case "file":
            return FilesSource(_absolute(target, rest))
        case "https":
            if root_file is None:
                raise BadTarget(f"{target}: say with --ca-root (CA_ROOT_CA) by whom its certificate must be signed")
            return RequestingSource(GrpcCaClient(_host_and_port(target), token_file, root_file=root_file))
        case _:
            raise BadTarget(f"{target!r} is no certificate authority: give {FORMS}")


def files_read(target: str, token_file: Path, root_file: Path | None) -> tuple[Path, ...]:
    """What the source of `target` reads; whoever drops privileges must still be able to."""
    if target.startswith("file:"):
        return (_absolute(target, target.removeprefix("file:")),)
    return tuple(path for path in (token_file, root_file) if path is not None)


def _absolute(target: str, rest: str) -> Path:
    """``//`` of a URL without a host is left out."""
    path = Path("/" + rest.lstrip("/"))
    if not rest.startswith("/") or path == Path("/"):
        raise BadTarget(f"{target!r}: the path must be absolute, as in {FORMS}")
    return path


def _host_and_port(target: str) -> str:
    try:
        parts = urlsplit(target)
        port = parts.port
    except ValueError as error:
        raise BadTarget(f"{target!r}: {error}") from None
    if not parts.hostname or port is None or parts.path.strip("/") or parts.query or parts.username:
        raise BadTarget(f"{target!r}: give host and port and nothing else, as in https://istiod.istio-system.svc:15012")
    return f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}"
