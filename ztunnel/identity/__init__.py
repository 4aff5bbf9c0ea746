"""Keys and certificates of this node's workloads: made here, signed by the authority, renewed under live traffic."""
