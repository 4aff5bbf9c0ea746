# SPDX-License-Identifier: Apache-2.0
"""`qanat bug-report`: what is needed to understand a cluster's mesh from afar, in one file without secrets."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from mesh.sources.kubernetes.api import Api, ApiError
from nodeagent.cli.cluster import checks, objects
from nodeagent.cli.cluster.connect import cluster_options, with_api
from nodeagent.cli.cluster.nodepages import node_pages
from nodeagent.cli.cluster.objects import NAMESPACE, Raw
from nodeagent.cli.cluster.rollout import pods
from nodeagent.cli.errors import CliError
from nodeagent.cli.render import Format, dump, plain
from nodeagent.cli.version import installed

LIMIT = 500
LOG_LINES = 5000
LOG_BYTES = 4 << 20
MAX_PODS = 100
POLICIES = (
    "apis/security.istio.io/v1/authorizationpolicies",
    "apis/security.istio.io/v1/peerauthentications",
    "apis/qanat.io/v1alpha1/egresspolicies",
)
_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)?"),  # a JSON web token
    re.compile(r"(?i)\b(bearer)[ :=]+[A-Za-z0-9._~+/=-]{12,}"),
)
HIDDEN = "(left out: secret)"


def without_secrets(text: str) -> str:
    """Our programs log none; this is for what others may have put into a field or a line."""
    for pattern in _SECRETS:
        text = pattern.sub(HIDDEN, text)
    return text


def without_data(found: Raw) -> Raw:
    """Of a Secret, the names of its fields only."""
    kept = dict(found)
    for name in ("data", "stringData"):
        if found.get("kind") == "Secret" and isinstance(found.get(name), dict):
            kept[name] = dict.fromkeys(found[name], HIDDEN)
    meta = dict(found.get("metadata") or {})
    meta.pop("managedFields", None)
    return {**kept, "metadata": meta}


class Report:
    """Files in memory. What could not be had is a file too, and says why."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.failed: list[str] = []

    def add(self, name: str, content: str) -> None:
        self.files[name] = without_secrets(content).encode()

    async def take(self, name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            found = await ask()
        except ApiError as error:
            self.add(f"{name}.error", f"{error}\n")
            self.failed.append(name)
            return
        self.add(name, found if isinstance(found, str) else json.dumps(plain(found), indent=1, default=str))

    def take_nodes(self, kubeconfig: Path | None, context: str) -> None:
        """What they say of themselves; a node that is silent is a file that says why."""
        try:
            for name, answer in node_pages(kubeconfig, context):
                if answer.error:
                    self.add(f"{name}.error", f"{answer.error}\n")
                    self.failed.append(name)
                else:
                    self.add(f"{name}.json", json.dumps(answer.data, indent=1))
        except CliError as error:
            self.add("nodes.error", f"{error.message}\n")
            self.failed.append("nodes")

    def write(self, path: Path) -> None:
        root = path.name.split(".")[0]
        with path.open("xb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{root}/{name}")
                entry.size, entry.mode, entry.mtime = len(content), 0o644, int(time.time())
                archive.addfile(entry, io.BytesIO(content))


async def collect(api: Api) -> Report:
    """Raises ApiError only when there is no API at all."""
    report = Report()
    version = await api.get("version")
    report.add("versions.json", json.dumps({"qanat": installed(), "kubernetes": version}, indent=1))
    await report.take("checks.json", lambda: checks.run(api))
    for kind in objects.KINDS:
        await report.take(f"objects/{kind}.json", lambda kind=kind: _ours(api, kind))  # type: ignore[misc]
    for path in POLICIES:
        await report.take(f"policies/{path.rpartition('/')[2]}.json", lambda path=path: _all(api, path))  # type: ignore[misc]
    await report.take("namespaces.json", lambda: _namespaces(api))
    await report.take("events/system.json", lambda: _all(api, f"api/v1/namespaces/{NAMESPACE}/events"))
    await report.take("events/objects.json", lambda: _rejections(api))
    await report.take("pods.json", lambda: pods(api))
    try:
        found = (await pods(api))[:MAX_PODS]
    except ApiError:
        found = []  # said above
    for pod in found:
        await _of_pod(api, report, pod)
    return report


async def _of_pod(api: Api, report: Report, pod: Raw) -> None:
    name = pod["metadata"]["name"]
    path = f"api/v1/namespaces/{NAMESPACE}/pods/{name}"
    query = f"tailLines={LOG_LINES}&limitBytes={LOG_BYTES}&timestamps=true"
    await report.take(f"logs/{name}.log", lambda: api.text(f"{path}/log?{query}", LOG_BYTES))
    if any(int(one.get("restartCount") or 0) for one in (pod.get("status") or {}).get("containerStatuses") or ()):
        await report.take(f"logs/{name}.previous.log", lambda: api.text(f"{path}/log?{query}&previous=true", LOG_BYTES))
    if (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component") == "ztunnel":
        await report.take(f"metrics/{name}.txt", lambda: api.text(f"{path}:15020/proxy/metrics", LOG_BYTES))


async def _all(api: Api, path: str, selector: str = "") -> list[Raw]:
    return [without_data(one) for one in (await api.list_page(path, limit=LIMIT, selector=selector)).items]


async def _ours(api: Api, kind: str) -> list[Raw]:
    page = await api.list_page(objects.collection(kind), limit=LIMIT, selector=objects.OURS)
    return [without_data({**one, "kind": kind}) for one in page.items]


async def _namespaces(api: Api) -> list[dict[str, Any]]:
    page = await api.list_page("api/v1/namespaces", limit=LIMIT)
    return [{"name": one["metadata"]["name"], "labels": one["metadata"].get("labels")} for one in page.items]


async def _rejections(api: Api) -> list[Raw]:
    page = await api.list_page("apis/events.k8s.io/v1/events", limit=LIMIT)
    return [without_data(one) for one in page.items if one.get("reportingController") == "qanat.io/controlplane"]


@click.command(
    name="bug-report",
    epilog="""\b
Examples:
  qanat bug-report
  qanat bug-report --to /tmp/mesh.tar.gz --context prod

\b
Exit codes:
  0  written; parts that could not be had are named
  1  no API, or the file cannot be written""",
)
@click.option("--to", "path", type=click.Path(path_type=Path, dir_okay=False), help="File to write; it must not exist.")
@cluster_options
def bug_report(path: Path | None, kubeconfig: Path | None, context: str, form: str) -> None:
    """Collect versions, checks, our objects, policies, events, logs, metrics and what each node says of itself (as
    status, connections, policies, certs and check --maps show it) into one file.

    Contents of Secrets, keys and tokens are left out; names of namespaces, pods and policies are in it."""
    target = path or Path(time.strftime("qanat-bug-report-%Y%m%d-%H%M%S.tar.gz"))
    report = with_api(kubeconfig, context, collect)
    report.take_nodes(kubeconfig, context)
    try:
        report.write(target)
    except OSError as error:
        raise click.ClickException(f"{target}: {error.strerror}") from error
    if Format(form).is_data:
        click.echo(dump({"file": str(target), "files": sorted(report.files), "failed": report.failed}, Format(form)))
        return
    click.echo(f"{target}: {len(report.files)} files")
    for name in report.failed:
        click.echo(f"  could not be had: {name}")
