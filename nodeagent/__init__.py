"""The privileged hand of a node: pods, BPF programs and the node-message server."""
