# SPDX-License-Identifier: Apache-2.0
"""The three kinds of certificate source, each with somebody real behind it who can be made to do what tests need."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from controlplane.ca.authority import Authority
from mesh.model.identity import Identity
from tests.unit.identity.support import TRUST_DOMAIN, Ca
from ztunnel.identity.client import CertificateSource
from ztunnel.identity.files import FilesSource
from ztunnel.identity.requesting import RequestingSource
from ztunnel.identity.x509 import new_request


class Bench(ABC):
    """`source` may be of WEB and CART (on their nodes), nobody else."""

    source: CertificateSource

    @abstractmethod
    async def start(self) -> None: ...
    @abstractmethod
    async def stop(self) -> None: ...
    @abstractmethod
    async def issue_anew(self) -> None:
        """From now on obtain() can answer with another certificate."""

    @abstractmethod
    async def add_root(self) -> str:
        """One more root is to be trusted; its PEM."""

    @abstractmethod
    async def vanish(self) -> str:
        """The source is away; what the error must name."""

    @abstractmethod
    async def return_(self) -> None: ...


class Embedded(Bench):
    def __init__(self, run_dir: Path) -> None:
        self._ca = Ca(run_dir)

    async def start(self) -> None:
        await self._ca.start()
        self.source = RequestingSource(self._ca.client("n1"))

    async def stop(self) -> None:
        await self.source.close()
        await self._ca.stop()

    async def issue_anew(self) -> None:
        return

    async def add_root(self) -> str:
        assert self._ca.keeper.rotate_root("")
        (incoming,) = [pem for pem in (self._ca.keeper._authority.standing().incoming,) if pem]
        return incoming

    async def vanish(self) -> str:
        await self._ca.stop()
        return "no answer from the authority at"

    async def return_(self) -> None:
        await self._ca.start()


class OverTls(Embedded):
    async def start(self) -> None:
        await self._ca.start()
        self.source = RequestingSource(self._ca.tls_client("n1"))


class OnDisk(Bench):
    """A secret as kubelet mounts it, filled by an authority of its own as cert-manager would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "certs"
        self._authority = Authority(directory / "issuer", TRUST_DOMAIN, 3600)
        self._sets = 0
        self._identities: tuple[Identity, ...] = ()

    async def start(self) -> None:
        self._identities = (Identity(TRUST_DOMAIN, "shop", "web"),)
        await self.issue_anew()
        self.source = FilesSource(self.directory, look_every_s=0.05)

    async def stop(self) -> None:
        await self.source.close()

    async def issue_anew(self) -> None:
        for identity in self._identities:
            mount(self.place(identity), material(self._authority, identity))

    async def add_root(self) -> str:
        self._authority.rotate_root()
        for identity in self._identities:
            found = {name: (self.place(identity) / name).read_bytes() for name in ("tls.crt", "tls.key")}
            mount(self.place(identity), {**found, "ca.crt": self._authority.bundle_pem().encode()})
        return self._authority.standing().incoming or ""

    async def vanish(self) -> str:
        self.directory.rename(self.directory.with_name("away"))
        return "tls.crt: No such file or directory"

    async def return_(self) -> None:
        self.directory.with_name("away").rename(self.directory)

    def place(self, identity: Identity) -> Path:
        return self.directory / identity.namespace / identity.service_account


def material(authority: Authority, identity: Identity, ttl_s: float = 0) -> dict[str, bytes]:
    request = new_request(identity)
    issued = authority.sign(request.csr_pem, identity, ttl_s)
    chain = "".join(issued.chain[:-1]).encode()
    return {"tls.crt": chain, "tls.key": request.key_pem, "ca.crt": issued.chain[-1].encode()}


def mount(place: Path, files: dict[str, bytes]) -> None:
    """As kubelet does: a new directory, a link ``..data`` switched over to it, links to files through that; then the
    old directory goes."""
    place.mkdir(parents=True, exist_ok=True)
    before = place / os.readlink(place / "..data") if (place / "..data").is_symlink() else None
    fresh = place / f"..{dt.datetime.now(dt.UTC):%Y_%m_%d_%H_%M_%S.%f}"
    fresh.mkdir()
    for name, data in files.items():
        (fresh / name).write_bytes(data)
    staged = place / "..data_tmp"
    staged.symlink_to(fresh.name)
    staged.replace(place / "..data")
    for name in files:
        if not (place / name).is_symlink():
            (place / name).symlink_to(Path("..data") / name)
    if before is not None:
        shutil.rmtree(before)
