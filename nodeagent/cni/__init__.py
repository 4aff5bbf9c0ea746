# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin's other half: a pod's first packet waits until its capture stands."""
