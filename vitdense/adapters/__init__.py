"""Levels in, levels out; importing this package registers the adapters."""
