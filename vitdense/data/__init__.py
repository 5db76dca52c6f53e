"""Data sets by name; importing this package registers them."""
