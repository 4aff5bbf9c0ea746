# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects to mesh values, shared by every source that reads Kubernetes' API types."""
