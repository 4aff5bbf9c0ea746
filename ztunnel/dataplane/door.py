"""What the rest of ztunnel asks of the engine: the shape of _native.Core, so that tests can have their own."""

from __future__ import annotations

from typing import Protocol

from mesh.model.identity import Identity
from mesh.model.workload import IPAddress
from ztunnel.dataplane.policy_rows import PolicyTables, PolicyVerdict
from ztunnel.dataplane.values import Counters, Event, PodSpec, Revocations, Tables


class Engine(Protocol):
    """One thread calls all of it (the event loop's); nothing blocks on the network. Errors: EngineError."""

    @property
    def event_fd(self) -> int:
        """Readable when events wait."""

    def read_events(self) -> list[Event]:
        """A batch, empty when there are no more."""

    def connections(self) -> list[Event]:
        """Live ones, in the form of events."""

    def counters(self) -> Counters: ...

    def put_identity(self, id: str, chain: bytes, key: bytes, roots: bytes) -> None: ...

    def del_identity(self, id: str) -> None: ...

    def apply_revocations(self, lists: bytes, roots: bytes, issuers: bytes = b"") -> Revocations: ...

    def close_revocations(self) -> None: ...

    def find_revoked(self, chain: bytes) -> str: ...

    def apply(self, tables: Tables) -> None: ...

    def judge(
        self, tables: PolicyTables, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int
    ) -> PolicyVerdict:
        """What the compiled form of these policies says, whatever was applied. From any thread."""

    def apply_policies(self, tables: PolicyTables) -> None: ...

    def apply_egress(self, tables: PolicyTables) -> None: ...

    def add_pod(self, spec: PodSpec) -> None:
        """Takes the descriptors in `spec`; on failure they stay the caller's."""

    def del_pod(self, id: int, drain_ms: int) -> None: ...

    def retire_pod(self, id: int) -> None:
        """It is about to end: peers are told to open nothing more on the tunnels they have to it."""

    def drain(self, deadline_ms: int) -> None: ...

    def live(self) -> int: ...

    def set_sockets_map(self, fd: int) -> None: ...

    def set_flows_map(self, fd: int) -> None: ...
