# SPDX-License-Identifier: Apache-2.0
"""The programs that a measurement puts on both sides of the wire."""
