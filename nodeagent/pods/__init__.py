"""Which pods of this node are captured, and bringing the node to that state."""
