# SPDX-License-Identifier: Apache-2.0
"""Whose fault it is."""


class CaptureError(Exception):
    """The kernel refused or its state is not ours; the message says what to try."""


class NotSupported(CaptureError):
    """This machine lacks something capture needs; `qanat check` says what."""
