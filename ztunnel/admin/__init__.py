"""Looking into a running ztunnel: dumps, metrics, readiness."""
