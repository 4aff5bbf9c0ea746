"""Metrics and the access log: what happened to every connection, for people and for Prometheus."""
