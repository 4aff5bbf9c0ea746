# SPDX-License-Identifier: Apache-2.0
"""The mesh as directories of ordinary Kubernetes YAML."""

from mesh.sources.files.source import FileSource

__all__ = ["FileSource"]
