# SPDX-License-Identifier: Apache-2.0
"""The mesh vocabulary: values, where they come from and what the node programs say to each other. No sockets."""
