"""Metrics by name; importing this package registers them."""
