# SPDX-License-Identifier: Apache-2.0
"""Where a test cluster's parts are, in both families: pairs are IPv4, IPv6. The addresses exist only in the cluster's
namespaces."""

from __future__ import annotations

GATEWAYS = (GATEWAY, GATEWAY6) = ("198.18.0.1", "fd98::1")
"""Of the machine beside the nodes, where the control plane is."""
SERVICES = ("198.18.64.0/20", "fd98:64::/108")
PODS = ("198.19.0.0/16", "fd98:19::/48")
API_SERVICE = "198.18.64.1"
DNS = ("198.18.64.10", "fd98:64::a")
DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")
