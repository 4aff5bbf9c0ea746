"""The tunnel: keys, tables and the C engine of one node."""

__version__ = "0.1.0"
