# SPDX-License-Identifier: Apache-2.0
"""The kernel side seen from user space: layouts, the libbpf door, probes."""
