"""The tunnel: keys, tables and the C engine of one node."""
