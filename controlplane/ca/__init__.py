"""The embedded certificate authority, spoken to over Istio's certificate API."""
