# SPDX-License-Identifier: Apache-2.0
"""A cluster to look at:

python -m tests.k8s.cluster up                     brings it up, stays until interrupted, takes it down
python -m tests.k8s.cluster kubectl get pods -A    in another shell
python -m tests.k8s.cluster on n1 crictl ps        a command on a node
python -m tests.k8s.cluster down                   ends what a crash left
"""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.k8s.cluster import cluster, images, machine, node


def main(arguments: list[str]) -> int:
    match arguments:
        case ["up", *options]:
            nodes = node.NODES[:1] if "--one" in options else node.NODES
            with cluster.running(images.build(), nodes) as made:
                print(made.kubectl("get", "nodes", "-o", "wide"), flush=True)
                for number in (signal.SIGINT, signal.SIGTERM):  # the former is ignored in a shell's background
                    signal.signal(number, signal.default_int_handler)
                try:
                    signal.pause()
                except KeyboardInterrupt:
                    return 0
        case ["down"]:
            with machine.lock(0.0), machine.sysctls_kept():
                cluster.clean()
        case ["kubectl", *rest]:
            process: subprocess.Popen[bytes] = cluster.Cluster().kubectl_started(*rest)
            return process.wait()
        case ["on", name, *argv]:
            done = cluster.Cluster().on(name, *argv, check=False)
            print(done.stdout + done.stderr, end="")
            return done.returncode
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except machine.Unfit as error:
        sys.exit(f"no cluster here: {error}")
