# SPDX-License-Identifier: Apache-2.0
"""Files to objects that remember where they stand, and a mesh to hold them against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mesh.kube.assemble import assemble
from mesh.kube.fields import Path, path_text
from mesh.kube.objects import KubeObject, ObjectError, ObjectRef, PolicyObject
from mesh.kube.parse import Ignored, parse_object, unroll
from mesh.kube.policy_fields import POLICY_KINDS
from mesh.kube.settings import TranslateSettings
from mesh.model.policy import Policy
from mesh.policy.known import Known
from mesh.policy.lint.finding import Finding
from mesh.sources.files.documents import Document, DocumentError, read_documents

TEMPLATED = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")


@dataclass(frozen=True, slots=True)
class Text:
    """A file. ``is_subject``: to be judged; otherwise the rest of the mesh."""

    name: str
    data: bytes
    is_subject: bool = True


@dataclass(frozen=True, slots=True)
class Written:
    """A policy to be judged, with the raw object it was made from."""

    ref: ObjectRef
    policy: Policy
    raw: Any
    file: str
    document: Document = field(repr=False)
    prefix: Path = ()

    def finding(self, code: str, path: Path, message: str, fix: str) -> Finding:
        return Finding(self.file, self.line_of(path), code, str(self.ref), path_text(path), message, fix)

    def line_of(self, path: Path) -> int:
        return self.document.line_of((*self.prefix, *path))

    def path_of(self, text: str) -> Path:
        """The path of a field from its text, of which the model keeps no more."""
        waiting: list[tuple[Path, object]] = [(("spec",), self.raw.get("spec"))]
        while waiting:
            path, value = waiting.pop()
            if path_text(path) == text:
                return path
            inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            waiting += [((*path, key), item) for key, item in inside]
        return ("spec",)


@dataclass(frozen=True, slots=True)
class Reading:
    """``policies``: those to be judged. ``findings``: what could not be read."""

    policies: tuple[Written, ...]
    known: Known
    findings: tuple[Finding, ...]


def read(texts: Iterable[Text], trust_domains: tuple[str, ...]) -> Reading:
    """Objects of subjects count instead of those of the same name in the rest of the mesh."""
    objects: dict[ObjectRef, KubeObject] = {}
    places: dict[ObjectRef, str] = {}
    policies: list[Written] = []
    findings: list[Finding] = []
    for text in sorted(texts, key=lambda text: not text.is_subject):
        for found in _objects(text):
            if isinstance(found, Finding):
                findings.append(found)
                continue
            value, written, line = found
            if value.ref not in places:
                places[value.ref] = f"{text.name}:{line}"
                objects[value.ref] = value
                if written is not None and text.is_subject:
                    policies.append(written)
            elif text.is_subject:
                message = f"{places[value.ref]} has an object of this name, which counts; this one does not."
                findings.append(Finding(text.name, line, "duplicate-name", str(value.ref), "", message, "rename one"))
    assembly = assemble(objects.values(), TranslateSettings(trust_domain=trust_domains[0]))
    declared = frozenset((ref.namespace, ref.name) for ref in objects if ref.kind == "ServiceAccount")
    return Reading(tuple(policies), Known(assembly.snapshot(1), trust_domains, declared), tuple(findings))


_Found = tuple[KubeObject, Written | None, int]


def _objects(text: Text) -> Iterator[_Found | Finding]:
    try:
        documents = read_documents(text.data)
    except DocumentError as error:
        if text.is_subject:
            yield Finding(text.name, error.line, "unreadable", "", "", f"The file {error.message}.", "mend the YAML")
        return
    for document in documents:
        try:
            items = list(unroll(document.value))
        except ObjectError as error:
            if text.is_subject:
                line = document.line_of(error.path)
                yield Finding(text.name, line, "unreadable", "", path_text(error.path), f"{error.message}.", "mend it")
            continue
        for raw, prefix in items:
            yield from _one(text, document, raw, prefix)


def _one(text: Text, document: Document, raw: object, prefix: Path) -> Iterator[_Found | Finding]:
    line = document.line_of(prefix)
    try:
        value = parse_object(pod_of(raw))
    except ObjectError as error:
        if text.is_subject:
            where = document.line_of((*prefix, *error.path))
            message = f"{path_text(error.path) or 'The object'}: {error.message}."
            fix = "mend the field; until then the last good form counts, or what it selects is closed"
            yield Finding(text.name, where, "rejected", str(error.ref or ""), path_text(error.path), message, fix)
        return
    if isinstance(value, Ignored):
        if text.is_subject and value.what.endswith(POLICY_KINDS):
            message = f"{value.what} is not read by this mesh: it allows and denies nothing here."
            yield Finding(text.name, line, "foreign-kind", "", "apiVersion", message, "use security.istio.io/v1")
        return
    written = None
    if isinstance(value, PolicyObject):
        written = Written(value.ref, value.policy, raw, text.name, document, prefix)
    yield value, written, line


def pod_of(raw: object) -> object:
    """A Deployment and its like as a pod of its template: what a selector will meet. Anything else as it is."""
    if not isinstance(raw, dict) or raw.get("kind") not in TEMPLATED:
        return raw
    spec, meta = raw.get("spec"), raw.get("metadata")
    template = spec.get("template") if isinstance(spec, dict) else None
    if not isinstance(template, dict) or not isinstance(meta, dict):
        return raw
    inner = template.get("metadata")
    inner = inner if isinstance(inner, dict) else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**inner, "name": meta.get("name"), "namespace": meta.get("namespace")},
        "spec": template.get("spec"),
    }
