# SPDX-License-Identifier: Apache-2.0
"""A cluster's API as the mesh's configuration: list, then watch."""

from mesh.sources.kubernetes.source import KubernetesSource as KubernetesSource
