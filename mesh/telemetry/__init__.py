"""What logs and metrics of all programs have in common: names, line forms, label sets. No metrics library."""
