"""`qanat trace` on a node: programs compiled for one question, attached for as long as somebody reads."""
