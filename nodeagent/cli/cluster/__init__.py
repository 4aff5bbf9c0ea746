# SPDX-License-Identifier: Apache-2.0
"""The mesh of a whole cluster: what is installed there, how it gets there, how it goes."""
