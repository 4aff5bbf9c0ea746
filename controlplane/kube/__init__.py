# SPDX-License-Identifier: Apache-2.0
"""The control plane as a citizen of a cluster: who leads, where the keys are, whose token that is."""
