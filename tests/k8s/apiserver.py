# SPDX-License-Identifier: Apache-2.0
"""etcd and kube-apiserver on loopback: a Kubernetes API without nodes, ready in a few seconds."""

from __future__ import annotations

import datetime as dt
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

READY_S = 60.0


class Missing(Exception):
    """A program is not here; the message says how to get it."""


def compiled(program: str) -> Path:
    """Where the pinned version of a program is, or would be: as build.sh says, which compiles it."""
    build = Path(__file__).parent / "cluster" / "binaries" / "build.sh"
    return Path(subprocess.check_output([str(build), "--where", program], text=True).strip())


def programs() -> Path:
    """The folder of those of Kubernetes. Raises Missing."""
    server = compiled("kube-apiserver")
    if not server.exists():
        raise Missing(f"{server} is not there (tests/k8s/cluster/binaries/build.sh compiles it)")
    if shutil.which("etcd") is None:
        raise Missing("etcd is not installed (apt-get install etcd-server)")
    return server.parent


@dataclass
class Pki:
    """One authority for everything; files in a directory."""

    directory: Path
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        self._ca = self._build(name, name, self._key, ca=True).sign(self._key, hashes.SHA256())
        self._write("ca", self._ca, self._key)

    def _build(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )

    def issue(
        self,
        name: str,
        organization: str = "",
        *,
        common_name: str = "",
        server: bool = False,
        serves: tuple[str, ...] = ("127.0.0.1", "localhost"),
    ) -> None:
        """``<name>.crt`` and ``<name>.key``. ``serves``: names and addresses of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name or name)]
        if organization:
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._build(x509.Name(parts), self._ca.subject, key, ca=False).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if server:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(_general_name, serves)), critical=False)
        self._write(name, builder.sign(self._key, hashes.SHA256()), key)

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        pem = serialization.Encoding.PEM
        (self.directory / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
        form = serialization.PrivateFormat.PKCS8
        (self.directory / f"{name}.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


class ApiServerProcess:
    """Start it with running(). ``stop`` and ``start`` again keep what etcd knows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bin = programs()
        self._etcd_port, self.port = _free_port(), _free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        pki = Pki(directory)
        pki.issue("server", server=True)
        pki.issue("admin", "system:masters")
        key = ec.generate_private_key(ec.SECP256R1())
        form, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        (directory / "sa.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
        self.kubeconfig = self.write_kubeconfig(
            "admin",
            {"client-certificate": str(directory / "admin.crt"), "client-key": str(directory / "admin.key")},
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def write_kubeconfig(self, name: str, user: dict[str, str]) -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self.directory / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
        }
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def start_etcd(self) -> None:
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{_free_port()}"
        data = self.directory / "etcd"
        data.mkdir(mode=0o700, exist_ok=True)
        flags = {
            "data-dir": str(data),
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "log-level": "warn",
        }
        argv = ["etcd", "--unsafe-no-fsync", *(f"--{name}={value}" for name, value in flags.items())]
        self._etcd = self._run("etcd", argv)

    def start(self, *flags: str) -> None:
        """kube-apiserver; returns when it is ready."""
        d = self.directory
        self._api = self._run(
            "kube-apiserver",
            [
                str(self._bin / "kube-apiserver"),
                f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={self.port}",
                "--endpoint-reconciler-type=none",
                f"--tls-cert-file={d}/server.crt",
                f"--tls-private-key-file={d}/server.key",
                f"--client-ca-file={d}/ca.crt",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={d}/sa.key",
                f"--service-account-signing-key-file={d}/sa.key",
                "--service-cluster-ip-range=198.18.64.0/20",
                "--authorization-mode=RBAC",
                "--anonymous-auth=false",
                "--disable-admission-plugins=ServiceAccount",
                *flags,
            ],
        )
        context = ssl.create_default_context(cafile=str(d / "ca.crt"))
        context.load_cert_chain(d / "admin.crt", d / "admin.key")
        end = time.monotonic() + READY_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", context=context, timeout=5) as answer:
                    if answer.read() == b"ok":
                        return
            except OSError as error:
                last: object = error
            else:
                last = "not ok"
            if self._api.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"kube-apiserver is not ready ({last}):\n{self.log_tail()}")
            time.sleep(0.1)

    def log_tail(self) -> str:
        return "\n".join((self.directory / "kube-apiserver.log").read_text(errors="replace").splitlines()[-15:])

    def _run(self, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def stop(self) -> None:
        self._end(self._api)
        self._api = None

    def close(self) -> None:
        self.stop()
        self._end(self._etcd)
        self._etcd = None

    @staticmethod
    def _end(process: subprocess.Popen[bytes] | None) -> None:
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(directory: Path) -> Iterator[ApiServerProcess]:
    server = ApiServerProcess(directory)
    try:
        server.start_etcd()
        server.start()
        yield server
    finally:
        server.close()


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
