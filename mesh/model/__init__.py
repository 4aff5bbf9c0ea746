# SPDX-License-Identifier: Apache-2.0
"""Frozen values without I/O."""
