# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as raw objects: pages of a list, lines of a watch. The one module that knows the client library
(lightkube: where the cluster is, who we are, tokens that rotate).

Everything a server can send is bounded: the length of a page, of an event, the time without a word.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, TypeVar

import httpx2 as httpx
import msgspec
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

if TYPE_CHECKING:
    from mesh.sources.kubernetes.execution import Execution

Raw = dict[str, Any]

MAX_PAGE_BYTES = 64 << 20
MAX_EVENT_BYTES = 8 << 20
"""etcd keeps objects below 1.5 MiB; the text of one may be longer."""
ANSWER_S = 30.0
SILENCE_S = 150.0
"""A watch with bookmarks says something about once a minute; a peer that is gone says nothing."""


class ApiError(Exception):
    """The API could not be asked, or refused. What, where, and what to try."""


class Gone(ApiError):
    """410: the version we know is too old; list again."""


class NotServed(ApiError):
    """404: the API has no such resource (a CRD that is not installed), or no such object."""


class Forbidden(ApiError):
    """403: we are known, and may not."""


class Conflict(ApiError):
    """409: somebody else has written it since, or it is there already."""


class PageTooLarge(ApiError):
    """Ask for fewer objects at once."""


@dataclass(frozen=True, slots=True)
class Page:
    """``next``: token of the following page, empty at the end. ``version``: where a watch goes on."""

    items: tuple[Raw, ...]
    version: str
    next: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """``kind``: ADDED, MODIFIED, DELETED, BOOKMARK (which has nothing but a version), or, first of all and our own,
    OPENED: the server has agreed to tell."""

    kind: str
    object: Raw
    version: str


class Api:
    """One connection pool. ``close()`` it."""

    def __init__(self, client: httpx.AsyncClient, where: str) -> None:
        """Use connect()."""
        self._client = client
        self.where = where

    @classmethod
    def connect(cls, kubeconfig: Path | None = None, context: str = "") -> Self:
        """``kubeconfig`` None: $KUBECONFIG, ~/.kube/config or the pod's service account. Nothing is asked yet.

        Raises ApiError when there is no usable configuration."""
        try:
            found = KubeConfig.from_file(str(kubeconfig)) if kubeconfig else KubeConfig.from_env()
            config = found.get(context or None)
            if config is None:
                raise ConfigError(f"no context {context!r}")
            client = AsyncClient(config, ConnectionParams(timeout=httpx.Timeout(ANSWER_S), trust_env=False))
        except (ConfigError, OSError, ValueError, AssertionError) as error:
            place = kubeconfig or "$KUBECONFIG, ~/.kube/config or a service account"
            raise ApiError(f"no way to the Kubernetes API by {place}: {error}") from error
        return cls(client, config.cluster.server)

    async def close(self) -> None:
        await self._client.aclose()

    async def list_page(
        self, path: str, *, limit: int, token: str = "", selector: str = "", fields: object = None
    ) -> Page:
        """``path``: "api/v1/pods". ``selector``: of labels. ``fields``: a type (mesh.kube.used) that says which are
        wanted of each object; None: all. Raises ApiError."""
        params = {"limit": str(limit), **({"continue": token} if token else {})}
        params |= {"labelSelector": selector} if selector else {}
        body = bytearray()
        try:
            async with self._client.stream("GET", path, params=params) as answer:
                await _check(answer, f"list {path}")
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_PAGE_BYTES:
                        raise PageTooLarge(f"list {path}: {limit} objects are more than {MAX_PAGE_BYTES >> 20} MiB")
        except httpx.HTTPError as error:
            raise self._unreachable(f"list {path}", error) from error
        found = _decoded(bytes(body), f"list {path}", _decoder(_List, fields))
        meta, items = found.get("metadata"), found.get("items")
        if not isinstance(meta, dict) or not isinstance(items, list | None):
            raise ApiError(f"list {path}: the answer is not a list of objects")
        version, following = str(meta.get("resourceVersion") or ""), str(meta.get("continue") or "")
        return Page(tuple(item for item in items or () if isinstance(item, dict)), version, following)

    async def watch(
        self, path: str, *, version: str, seconds: int, fields: object = None
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after ``version``; ends when the server ends it, after about ``seconds``. ``fields`` as of
        list_page(). Raises ApiError."""
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        timeout = httpx.Timeout(ANSWER_S, read=SILENCE_S)
        decoder = _decoder(_Event, fields)
        try:
            async with self._client.stream("GET", path, params=params, timeout=timeout) as answer:
                await _check(answer, f"watch {path}")
                yield WatchEvent("OPENED", {}, version)
                async with aclosing(_lines(answer, f"watch {path}")) as lines:
                    async for line in lines:
                        yield _event(line, f"watch {path}", decoder)
        except httpx.HTTPError as error:
            raise self._unreachable(f"watch {path}", error) from error

    async def get(self, path: str) -> Raw:
        """One object. Raises ApiError."""
        try:
            answer = await self._client.get(path)
        except httpx.HTTPError as error:
            raise self._unreachable(f"get {path}", error) from error
        await _check(answer, f"get {path}")
        return _decoded(answer.content, f"get {path}")

    async def text(self, path: str, limit: int) -> str:
        """What is no object (a log), at most ``limit`` bytes of it. Raises ApiError."""
        found = bytearray()
        try:
            async with self._client.stream("GET", path) as answer:
                await _check(answer, f"get {path}")
                async for chunk in answer.aiter_bytes():
                    found += chunk
                    if len(found) >= limit:
                        break
        except httpx.HTTPError as error:
            raise self._unreachable(f"get {path}", error) from error
        return bytes(found[:limit]).decode("utf-8", "replace")

    async def stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """What is no object and may never end (a log that is followed), as it comes. Raises ApiError."""
        timeout = httpx.Timeout(ANSWER_S, read=None)
        try:
            async with self._client.stream("GET", path, timeout=timeout) as answer:
                await _check(answer, f"get {path}")
                async for chunk in answer.aiter_bytes():
                    yield chunk
        except httpx.HTTPError as error:
            raise self._unreachable(f"get {path}", error) from error

    async def send(
        self, method: str, path: str, body: Mapping[str, Any], content_type: str = "application/json"
    ) -> Raw:
        """One writing request; the answer's object. Raises ApiError."""
        try:
            answer = await self._client.request(
                method, path, content=msgspec.json.encode(body), headers={"Content-Type": content_type}
            )
        except httpx.HTTPError as error:
            raise self._unreachable(f"{method} {path}", error) from error
        await _check(answer, f"{method} {path}")
        return _decoded(answer.content, f"{method} {path}")

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str, dry_run: bool = False) -> Raw:
        """Server-side apply: what ``body`` says becomes ours (``manager``), also where somebody else had said it, and
        what we said before and no longer do goes away. Made where there is none. Raises ApiError."""
        query = f"fieldManager={manager}&force=true{'&dryRun=All' if dry_run else ''}"
        return await self.send("PATCH", f"{path}?{query}", body, "application/apply-patch+yaml")

    @asynccontextmanager
    async def run_in(self, pod: str, *, container: str, command: Sequence[str]) -> AsyncIterator[Execution]:
        """A command in a running pod (``pod``: its path), for as long as the block lasts. Raises ApiError when it
        cannot be started; what the Execution raises is ExecError."""
        from mesh.sources.kubernetes.execution import (  # WebSockets: no program of the mesh needs them
            ExecError,
            execute,
        )

        started = False
        try:
            async with execute(self._client, pod, container=container, command=command, ended=_last_words) as running:
                started = True
                yield running
        except ExecError as error:
            if started:
                raise
            reason = f"exec in {pod.rpartition('/')[2]}: {error}"
            match error.status:
                case 403:
                    raise Forbidden(f"{reason} (the role needs get and create on pods/exec there)") from error
                case 404:
                    raise NotServed(f"{reason}: there is no such pod") from error
                case _:
                    raise ApiError(reason) from error
        except httpx.HTTPError as error:
            raise self._unreachable(f"exec in {pod.rpartition('/')[2]}", error) from error

    def _unreachable(self, what: str, error: httpx.HTTPError) -> ApiError:
        return ApiError(f"{what}: {self.where} does not answer: {str(error) or type(error).__name__}")


def _last_words(status: bytes) -> str:
    try:
        found = _decoded(status, "exec")
    except ApiError:
        return "it ended"
    return str(found.get("message") or "it ended")


async def _check(answer: httpx.Response, what: str) -> None:
    if answer.status_code < 300:
        return
    text = bytearray()
    async for chunk in answer.aiter_bytes():
        text += chunk
        if len(text) > 65_536:
            break
    try:
        message = str(_decoded(bytes(text), what).get("message") or "")
    except ApiError:
        message = ""
    reason = f"{what}: {answer.status_code} {message or answer.reason_phrase}"
    match answer.status_code:
        case 401:
            raise ApiError(f"{reason} (is the token expired, or for another cluster?)")
        case 403:
            reads = what.startswith(("get ", "list ", "watch "))
            role = "needs get, list and watch on it" if reads else "does not allow it"
            raise Forbidden(f"{reason} (the role {role})")
        case 404:
            raise NotServed(reason)
        case 409:
            raise Conflict(reason)
        case 410:
            raise Gone(reason)
        case _:
            raise ApiError(reason)


async def _lines(answer: httpx.Response, what: str) -> AsyncGenerator[bytes, None]:
    rest = bytearray()
    async for chunk in answer.aiter_bytes():
        *whole, tail = chunk.split(b"\n")
        for part in whole:
            rest += part
            if rest:
                yield bytes(rest)
            rest.clear()
        rest += tail
        if len(rest) > MAX_EVENT_BYTES:
            raise ApiError(f"{what}: an event of more than {MAX_EVENT_BYTES >> 20} MiB")
    if rest:
        raise ApiError(f"{what}: cut off in the middle of an event")


T = TypeVar("T")


class _List(TypedDict, Generic[T], total=False):
    metadata: Any
    items: list[T] | None


class _Event(TypedDict, Generic[T], total=False):
    type: Any
    object: T | None


@cache
def _decoder(form: Any, fields: Any) -> msgspec.json.Decoder[Any] | None:
    return None if fields is None else msgspec.json.Decoder(form[fields])


def _event(line: bytes, what: str, decoder: msgspec.json.Decoder[Any] | None) -> WatchEvent:
    found = _decoded(line, what, decoder)
    kind = found.get("type")
    if kind == "ERROR" and decoder is not None:
        found = _decoded(line, what)  # its object is of another kind
    item = found.get("object")
    if not isinstance(item, dict) or kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"):
        raise ApiError(f"{what}: not an event: {line[:80]!r}")
    if kind == "ERROR":
        reason = f"{what}: {item.get('code')} {item.get('message')}"
        raise Gone(reason) if item.get("code") == 410 else ApiError(reason)
    meta = item.get("metadata")
    version = meta.get("resourceVersion") if isinstance(meta, dict) else None
    if not isinstance(version, str) or not version:
        raise ApiError(f"{what}: an event without a version: {line[:80]!r}")
    return WatchEvent(kind, item, version)


def _decoded(text: bytes, what: str, decoder: msgspec.json.Decoder[Any] | None = None) -> Raw:
    """An object that has not the form ``decoder`` expects is decoded in full: who reads it can name the field."""
    try:
        try:
            found = msgspec.json.decode(text) if decoder is None else decoder.decode(text)
        except msgspec.ValidationError:
            found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ApiError(f"{what}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ApiError(f"{what}: not an object")
    return found
