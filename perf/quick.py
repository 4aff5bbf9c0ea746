# SPDX-License-Identifier: Apache-2.0
"""``python -m perf.quick``: Qanat, an Envoy pair and plain TCP, interleaved, in under four minutes.

Exit status: 0 when measured (targets met or not, see the table; --strict makes an unmet one 1), 2 when it could not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from perf import report, scenarios
from perf.peers import envoy, ztunnel
from perf.peers.certs import TestAuthority
from perf.scenarios import ECHO, LOAD, SINK, SOURCE, Scenario, Target
from perf.topology import CLIENT_IP, SERVER_IPS, VIPS, PerfError, Process, Topology, interruptible, wait_for

RESULT = Path(__file__).resolve().parent / "results" / "quick.json"
PORTS = (ECHO, SINK, SOURCE)
WORKERS = 2
HBONE = 15008
CLIENT_ID = "spiffe://cluster.local/ns/perf/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/perf/sa/server"
IDLE_CONNS = 1000
SCENARIOS: dict[str, Scenario] = {
    "stream": scenarios.stream,
    "pingpong": scenarios.pingpong,
    "rate": scenarios.rate,
}
# A round trip takes 12 us or 90 as the scheduler puts its tasks on one core or two, for as long as a connection lives:
# many short runs instead of few long ones.
PASSES = {"pingpong": 4}


def start_apps(topology: Topology) -> None:
    specs = [f"{name}=0.0.0.0:{port}" for name, port in (("echo", ECHO), ("sink", SINK), ("source", SOURCE))]
    process = topology.start("apps", topology.server, [str(LOAD), "serve", *specs, "--seconds", "600"])
    process.read_json()


def is_listening(process: Process, port: int) -> bool:
    process.check()
    tables = (Path(f"/proc/{process.pid}/net/tcp"), Path(f"/proc/{process.pid}/net/tcp6"))
    return any(
        f":{port:04X} " in line and " 0A " in line for table in tables for line in table.read_text().splitlines()
    )


def start_envoy(topology: Topology, authority: TestAuthority) -> Target:
    """Envoy on both sides: the client's on VIPS[0], the server's HBONE on SERVER_IPS[1]."""
    ip = SERVER_IPS[1]
    files = topology.directory / "envoy"
    client, server = (authority.issue(name).write(files) for name in (CLIENT_ID, SERVER_ID))
    headers = {
        "forwarded": "for=%DOWNSTREAM_REMOTE_ADDRESS%",
        "baggage": "k8s.cluster.name=Kubernetes,k8s.namespace.name=perf,k8s.pod.name=client,service.name=client",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
    }
    outbounds = [envoy.Outbound((VIPS[0], port), f"{ip}:{port}", headers) for port in PORTS]
    configs = {
        topology.server: envoy.server_config(
            (ip, HBONE),
            {f"{ip}:{port}": (ip, port) for port in PORTS},
            server,
            "spiffe://cluster.local/",
            files / "server.log",
        ),
        topology.client: envoy.client_config(outbounds, (ip, HBONE), client, SERVER_ID, files / "client.log"),
    }
    found: list[Process] = []
    for index, (namespace, config) in enumerate(configs.items()):
        path = envoy.write(config, files / f"{index}.json")
        base_id = os.getpid() * 2 % 100000 + index
        found.append(topology.start(f"envoy-{index}", namespace, envoy.command(path, WORKERS, base_id)))
    server_side, client_side = found
    wait_for("Envoy's tunnel port", lambda: is_listening(server_side, HBONE), 20)
    wait_for("Envoy's listeners", lambda: is_listening(client_side, PORTS[-1]), 20)
    return Target("envoy", VIPS[0], (client_side, server_side))


def start_qanat(topology: Topology, authority: TestAuthority) -> Target:
    """Our engine on both sides: VIPS[1] is a service whose endpoint is SERVER_IPS[0]."""
    ip = SERVER_IPS[0]
    files = topology.directory / "qanat"
    client, server = (authority.issue(name).write(files) for name in (CLIENT_ID, SERVER_ID))
    sides = (
        ztunnel.Side(SERVER_ID, ip, server, files / "server.log", hbone=(ip, HBONE), workers=WORKERS),
        ztunnel.Side(
            CLIENT_ID, CLIENT_IP, client, files / "client.log", workers=WORKERS, vip=VIPS[1], ports=PORTS,
            peer=ip, peer_identity=SERVER_ID,
        ),
    )  # fmt: skip
    found: list[Process] = []
    for namespace, name, side in zip((topology.server, topology.client), ("server", "client"), sides, strict=True):
        path = side.write(files / f"{name}.json")
        process = topology.start(f"qanat-{name}", namespace, ztunnel.command(path))
        process.read_json()
        found.append(process)
    server_side, client_side = found
    return Target("qanat", VIPS[1], (client_side, server_side))


def measure(
    topology: Topology, targets: list[Target], rounds: int, seconds: int, console: Console
) -> dict[str, dict[str, list[report.Figures]]]:
    raw: dict[str, dict[str, list[report.Figures]]] = {name: {t.name: [] for t in targets} for name in SCENARIOS}
    for target in targets:
        scenarios.load(topology, "rate", target, ECHO, 8, 1)  # handshakes, page faults, route caches
    for turn in range(rounds):
        for name, scenario in SCENARIOS.items():
            passes = PASSES.get(name, 1)
            for number in range(turn * passes, (turn + 1) * passes):
                # Another order each time: nobody always runs first on a warm or busy machine.
                for target in targets[number % len(targets) :] + targets[: number % len(targets)]:
                    figures = scenario(topology, target, max(seconds // passes, 1))
                    raw[name][target.name].append({key: round(value, 4) for key, value in figures.items()})
        console.print(f"round {turn + 1} of {rounds} done", style="dim")
    raw["idle"] = {t.name: [scenarios.idle_memory(topology, t, IDLE_CONNS)] for t in targets if t.proxies}
    return raw


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.quick", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each single measurement")
    parser.add_argument("--targets", default="plain,envoy,qanat", help="comma list")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is not met")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    console = Console(width=110 if not sys.stdout.isatty() else None)
    if os.geteuid():
        console.print("perf-quick makes network namespaces: run it as root")
        return 2
    machine = report.machine()
    wanted = options.targets.split(",")
    started = time.monotonic()
    try:
        scenarios.build_load()
        authority = TestAuthority()
        with interruptible(), Topology() as topology:
            start_apps(topology)
            targets = [Target("plain", SERVER_IPS[0])] if "plain" in wanted else []
            if "envoy" in wanted:
                targets.append(start_envoy(topology, authority))
            if "qanat" in wanted:
                targets.append(start_qanat(topology, authority))
            raw = measure(topology, targets, options.rounds, options.seconds, console)
    except PerfError as error:
        console.print(f"perf-quick: {error}", style="red", markup=False)
        return 2
    median = report.medians(raw)
    ratios = report.ratios(median)
    report.show(console, median, ratios)
    result = {"ratios": ratios, "raw": {"medians": median, "rounds": raw}, "machine": machine}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"{time.monotonic() - started:.0f} s; written to {options.output}")
    missed = [name for name, budget in report.BUDGETS.items() if not budget.is_met(ratios[name] or 0.0)]
    return 1 if options.strict and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
