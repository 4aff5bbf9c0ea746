# SPDX-License-Identifier: Apache-2.0
"""`python -m nodeagent.cli`: the `qanat` command where it is not installed."""

from nodeagent.cli import main

main()
