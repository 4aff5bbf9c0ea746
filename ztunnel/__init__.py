# SPDX-License-Identifier: Apache-2.0
"""The tunnel: keys, tables and the C engine of one node."""

__version__ = "0.1.0"
