# SPDX-License-Identifier: Apache-2.0
"""The engine, its one Python door and the tables made for it."""
