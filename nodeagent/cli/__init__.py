# SPDX-License-Identifier: Apache-2.0
"""The `qanat` command. A command is imported when it is asked for, so that `qanat --help` is quick."""

from nodeagent.cli.main import main

__all__ = ["main"]
