# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom: the reference evaluator."""
