# SPDX-License-Identifier: Apache-2.0
"""Figures against plain TCP and against a stock Envoy pair. ``python -m perf.quick``; method in perf/README.md."""
