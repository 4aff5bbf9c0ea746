# SPDX-License-Identifier: Apache-2.0
"""The group `qanat`: COMMANDS says where each command is."""

from __future__ import annotations

import importlib

import click

from nodeagent.cli.errors import EXIT_CODES

COMMANDS = {
    "up": ("nodeagent.cli.up", "up", "Bring up a mesh of this machine's own namespaces from a directory of YAML."),
    "down": ("nodeagent.cli.up", "down", "Take a mesh down and leave nothing behind."),
    "exec": ("nodeagent.cli.up", "exec_", "Run a command inside a pod."),
    "install": ("nodeagent.cli.cluster.install", "install", "Install the mesh into a Kubernetes cluster."),
    "upgrade": ("nodeagent.cli.cluster.install", "upgrade", "Bring a cluster's mesh to this version."),
    "uninstall": ("nodeagent.cli.cluster.install", "uninstall", "Take the mesh out of a cluster, without a trace."),
    "bug-report": ("nodeagent.cli.cluster.bugreport", "bug_report", "All about a cluster's mesh in one file."),
    "demo": ("nodeagent.cli.demo", "demo", "Show on two nodes what the mesh does; every line is measured."),
    "check": ("nodeagent.cli.check", "check", "What this machine, or a cluster, offers and lacks."),
    "status": ("nodeagent.cli.status", "status", "Nodes, programs, captured pods, and every problem."),
    "workloads": ("nodeagent.cli.views", "workloads", "Pods and other workloads, as the nodes know them."),
    "services": ("nodeagent.cli.views", "services", "Services and their endpoints."),
    "policies": ("nodeagent.cli.policies", "policies", "Policies: where enforced, how often they decided, dead rules."),
    "lint": ("nodeagent.cli.lint", "lint_", "Mistakes in policies before they are applied."),
    "certs": ("nodeagent.cli.certs", "certs", "Certificates of this mesh's workloads."),
    "ca": ("nodeagent.cli.ca", "ca", "The certificate authority: where it stands, replace its issuer or root."),
    "connections": ("nodeagent.cli.views", "connections", "Open connections."),
    "explain": ("nodeagent.cli.explain", "explain", "Why a connection may be or not, or where it stops."),
    "whatif": ("nodeagent.cli.whatif", "whatif", "What changed objects would do to connections seen so far."),
    "audit": ("nodeagent.cli.audit", "audit", "Export the decision journal, or verify an export."),
    "shortcut": ("nodeagent.cli.shortcut", "shortcut", "The switch of the same-node shortcut."),
    "top": ("nodeagent.cli.top", "top", "Who talks to whom right now, by which path and how well."),
    "trace": ("nodeagent.cli.trace", "trace", "What happens to connections of chosen pods, as it happens."),
    "logs": ("nodeagent.cli.logs", "logs", "Logs of the mesh's programs, and of a playground's pods."),
    "version": ("nodeagent.cli.version", "show", "Versions of Qanat and of what it stands on."),
}
"""Command: (module, attribute, one line of help)."""


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qanat", message="%(prog)s %(version)s")
def main() -> None:
    """Qanat: an ambient service mesh.

    Commands that look at a mesh ask the one on this machine (`qanat up`) if there is one, else that of the cluster of
    $KUBECONFIG or ~/.kube/config; --mesh NAME, --kubeconfig FILE and --context NAME say which. In a cluster they ask
    every node, by exec into the pods of qanat-system with your own rights."""
