# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a playground, by whose fault it is."""

from __future__ import annotations


class PlaygroundError(Exception):
    """Base; the message says what to try."""


class OperatorError(PlaygroundError):
    """The user's command or machine: not root, bad mesh name, mesh already up from another directory."""


class NetworkError(PlaygroundError):
    """`ip` or `nft` refused; the message carries their words."""


class ObjectError(PlaygroundError):
    """A YAML object that cannot be run."""

    def __init__(self, file: str, obj: str, field: str, message: str) -> None:
        super().__init__(f"{file}: {obj}: {field}: {message}" if obj else f"{file}: {message}")
        self.file, self.obj, self.field, self.message = file, obj, field, message
