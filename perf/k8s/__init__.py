# SPDX-License-Identifier: Apache-2.0
"""What a cluster of thousands of nodes costs one node's programs: ``python -m perf.k8s.scale``."""
