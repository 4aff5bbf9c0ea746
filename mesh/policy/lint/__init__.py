# SPDX-License-Identifier: Apache-2.0
"""Mistakes in policies, found before they are applied.

Nothing is said of probes: the kubelet's connections come from the node itself and no policy is asked about them."""

from mesh.policy.lint.finding import CODES as CODES
from mesh.policy.lint.finding import Finding as Finding
from mesh.policy.lint.finding import Severity as Severity
from mesh.policy.lint.run import lint as lint
from mesh.policy.lint.written import Text as Text
